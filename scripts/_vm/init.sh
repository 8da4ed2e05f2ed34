#!/bin/busybox sh
# First process of the guest, from the initrd: builds the root file system and hands over to second.sh or to systemd.
# Root is an overlay: the host's / (read-only, virtiofs) below, a tmpfs above. Messages to the host go to port 1.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev
for module in /modules/*.ko; do [ -e "$module" ] && $B insmod "$module"; done
. /settings # NOW RELEASE SHARES SYSTEMD LOWER
$B date -s "@$((NOW + $($B cut -d. -f1 /proc/uptime)))" >/dev/null # microvm has no clock that the kernel reads

# The ports come some time after their driver; the last one stands for all.
tries=0
while set -- /dev/vport*p4; [ ! -e "$1" ] && [ $tries -lt 500 ]; do $B usleep 5000; tries=$((tries + 1)); done
PORT=${1%4}
exec 9>"${PORT}1"
fail() { echo "FAILED $*" >&9; $B sleep 1; $B poweroff -f; }

$B mount -t virtiofs root /lower || fail mount of virtiofs
$B mount -t tmpfs -o size=70%,mode=755 upper /upper
$B mkdir /upper/data /upper/work
$B mount -t overlay -o "lowerdir=$LOWER,upperdir=/upper/data,workdir=/upper/work" root /new || fail mount of the overlay

$B mount -t proc -o nosuid,nodev,noexec proc /new/proc
$B mount -t sysfs -o nosuid,nodev,noexec sysfs /new/sys
$B mount -t devtmpfs dev /new/dev
$B mkdir -p /new/dev/pts /new/dev/shm /new/dev/mqueue /new/tmp /new/run
$B mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /new/dev/pts
$B mount -t tmpfs -o mode=1777,size=70% shm /new/dev/shm
$B mount -t mqueue mqueue /new/dev/mqueue
$B mount -t tmpfs -o mode=1777,size=70% tmp /new/tmp
$B mount -t tmpfs -o mode=755,size=70% run /new/run
$B mount -t securityfs securityfs /new/sys/kernel/security 2>/dev/null
$B mount -t bpf bpf /new/sys/fs/bpf 2>/dev/null

# What udev would make. Opening the last two loads their modules.
[ -e /new/dev/fd ] || $B ln -s /proc/self/fd /new/dev/fd
for link in stdin:0 stdout:1 stderr:2; do
    [ -e "/new/dev/${link%:*}" ] || $B ln -s "/proc/self/fd/${link#*:}" "/new/dev/${link%:*}"
done
$B mkdir -p /new/dev/net
$B mknod /new/dev/net/tun c 10 200
$B mknod /new/dev/loop-control c 10 237

# Where modprobe looks.
$B mkdir -p "/new/lib/modules/$RELEASE"
$B mount --bind "/lower/kernel/lib/modules/$RELEASE" "/new/lib/modules/$RELEASE"

# The shares are mounted over the overlay: what is bind-mounted below an overlay's lower directory is not seen through it.
eval "set -- $SHARES"
number=0
for share; do
    $B mkdir -p "/new$share"
    $B mount --bind "/lower/shares/$number" "/new$share" || fail "mount of the share $share"
    number=$((number + 1))
done

$B mkdir /new/run/vm
$B cp /bin/busybox /second.sh /command.sh /stdin /new/run/vm/
echo "$PORT" >/new/run/vm/port
$B ifconfig lo up
$B hostname vm
echo 1 >/proc/sys/kernel/panic_on_oops
echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range

if [ -n "$SYSTEMD" ]; then
    . /systemd.sh
    exec 9>&-
    exec $B switch_root /new "$SYSTEMD"
fi
CGROUP=/new/sys/fs/cgroup
$B mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup2 $CGROUP
echo "+cpu +cpuset +memory +pids +io" >$CGROUP/cgroup.subtree_control
exec 9>&-
exec $B switch_root /new /run/vm/busybox sh /run/vm/second.sh
