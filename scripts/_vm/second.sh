# Runs the command in the guest and tells the host its exit status. stdin, stdout and stderr are the command's alone.
B=/run/vm/busybox
PORT=$($B cat /run/vm/port)
cd /run/vm || exit 1
exec 9>"${PORT}1"
$B mkfifo out err
# Through fifos, because a port can be opened once only and is not a file that a program may open again by /dev/stdout.
$B cat out >"${PORT}2" 9>&- & out=$!
$B cat err >"${PORT}3" 9>&- & err=$!
echo "UP $($B cat /proc/uptime)" >&9
$B setsid /bin/sh /run/vm/command.sh <stdin >out 2>err 9>&-
status=$?
# A process that the command left running may hold the fifos open: do not wait for it longer than a second.
tries=0
while { kill -0 $out || kill -0 $err; } 2>/dev/null && [ $tries -lt 100 ]; do $B usleep 10000; tries=$((tries + 1)); done
$B sync
echo "EXIT $status" >&9
$B sleep 5 # the host ends the machine
$B poweroff -f
