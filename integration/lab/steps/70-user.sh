# The daemon of an ordinary user beside root's: a mount, VMs and vsock addresses of its own.
vm web
useradd --create-home --shell /bin/bash --groups kvm alice
uid=$(id -u alice)
loginctl enable-linger alice
within 60 test -S /run/user/$uid/bus
as() {
	runuser -u alice -- env -C / HOME=/home/alice XDG_RUNTIME_DIR=/run/user/$uid \
		DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$uid/bus bash -eu -c "$1"
}
state=/home/alice/.local/state/banger
if [ -d "$LAB"/builtin ]; then
	runuser -u alice -- mkdir -p $state/images
	cp -r "$LAB"/builtin $state/images/
	chown -R alice: $state
fi
as 'systemctl --user start bangerd'
is active as 'systemctl --user is-active bangerd'

# alice's commands find her daemon, root's find root's.
is '' as 'banger ls'
as 'mkdir $XDG_RUNTIME_DIR/banger/vms/web && cd $XDG_RUNTIME_DIR/banger/vms/web && echo quiet >cmdline && echo 8081:80 >publish'
as 'banger start web && timeout 120 cat $XDG_RUNTIME_DIR/banger/vms/web/wait/healthy' || fail "$(as 'cat $XDG_RUNTIME_DIR/banger/vms/web/error; journalctl --user -u bangerd -n 30 --no-pager')"
matches "^web +running " as 'banger ls'
as 'banger exec web -- sh -c "mkdir -p /www; echo I am hers >/www/index.html; httpd -p 80 -h /www"'
within 30 curl -s http://127.0.0.1:8081/
is 'I am hers' curl -s --max-time 20 http://127.0.0.1:8081/
matches 'accel kvm' as 'grep -ao "accel kvm" $XDG_RUNTIME_DIR/banger/vms/web/log'

# Both guests have vsock, and no address twice.
all=$(cids)
matches '^[0-9]+
[0-9]+' echo "$all"
is "$(echo "$all" | wc -l)" sh -c "echo '$all' | sort -u | wc -l"
matches 'vsock leads to the agent' journalctl --no-pager -o cat _UID=$uid

# Limits need what systemd hands to her.
group=/sys/fs/cgroup$(sed 's/^0:://' /proc/$(as 'cat $XDG_RUNTIME_DIR/banger/vms/web/pid')/cgroup)
echo "$group"
as 'echo 512M >$XDG_RUNTIME_DIR/banger/vms/web/limits/memory.max' || fail "$(as 'cat $XDG_RUNTIME_DIR/banger/vms/web/error')"
is 536870912 cat $group/memory.max

# A restart of her daemon, and its end, leave the VM alone.
pid=$(as 'cat $XDG_RUNTIME_DIR/banger/vms/web/pid')
as 'systemctl --user restart bangerd'
is "$pid" as 'cat $XDG_RUNTIME_DIR/banger/vms/web/pid'
as 'timeout 60 cat $XDG_RUNTIME_DIR/banger/vms/web/wait/healthy'
is running cat $V/web/state
as 'banger stop web && banger rm web && systemctl --user stop bangerd'
