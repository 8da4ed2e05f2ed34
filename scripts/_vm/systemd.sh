# Read by init.sh: what systemd is to do in the guest. It starts the command and, by socket, the journal and D-Bus, and
# nothing else that the host may have enabled: under emulation each service costs a second.
UNITS=/new/run/systemd/system
$B mkdir -p $UNITS /new/run/systemd/system-generators /new/run/systemd/system.conf.d /new/run/systemd/journald.conf.d
$B rm -rf /new/etc/systemd/system /new/etc/systemd/system-generators
$B mkdir -p /new/etc/systemd/system
$B ln -s /run/systemd/system/vm.target /new/etc/systemd/system/default.target
# A host that is itself a container; systemd would believe to be in it and read no kernel parameters.
$B rm -f /new/.dockerenv /new/run/.containerenv

# Not a first boot, which would enable everything again.
[ -s /new/etc/machine-id ] || echo 0123456789abcdef0123456789abcdef >/new/etc/machine-id
# Normally made by the package's installation.
$B grep -q ^messagebus: /new/etc/passwd || echo messagebus:x:999:999::/nonexistent:/usr/sbin/nologin >>/new/etc/passwd
$B grep -q ^messagebus: /new/etc/group || echo messagebus:x:999: >>/new/etc/group

for generator in /new/lib/systemd/system-generators/* /new/usr/lib/systemd/system-generators/*; do
    [ -e "$generator" ] && $B ln -sf /dev/null "/new/run/systemd/system-generators/${generator##*/}"
done
for target in sysinit sockets local-fs timers; do
    for unit in /new/usr/lib/systemd/system/$target.target.wants/*; do
        case ${unit##*/} in
        systemd-journald.s* | systemd-journald-dev-log.socket | dbus.socket | '*') ;;
        *) $B ln -sf /dev/null "$UNITS/${unit##*/}" ;;
        esac
    done
done

cat_to() { $B cat >"$1"; }
cat_to /new/run/systemd/system.conf.d/vm.conf <<'END'
[Manager]
ShowStatus=no
DefaultTimeoutStartSec=300
DefaultTimeoutStopSec=300
DefaultDeviceTimeoutSec=300
END
cat_to /new/run/systemd/journald.conf.d/vm.conf <<'END'
[Journal]
Storage=volatile
RateLimitBurst=0
END
cat_to $UNITS/vm.target <<'END'
[Unit]
Description=What scripts/vm was asked to run
Requires=vm.service
Wants=dbus.socket systemd-journald.socket systemd-journald-dev-log.socket
END
cat_to $UNITS/vm.service <<'END'
[Unit]
Description=The command
DefaultDependencies=no
After=dbus.socket systemd-journald.socket systemd-journald-dev-log.socket

[Service]
Type=exec
ExecStart=/run/vm/busybox sh /run/vm/second.sh
StandardOutput=null
StandardError=null
Delegate=yes
OOMPolicy=continue
TasksMax=infinity
END
