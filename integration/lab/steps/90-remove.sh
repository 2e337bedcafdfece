# A removal ends VMs and daemon, and leaves nothing but the state directory. A purge leaves nothing.
vm web
dpkg -r banger
is '' qemus
refused systemctl is-active bangerd
refused ip link show banger0
refused sh -c 'nft list tables | grep banger'
refused grep banger /proc/self/mounts
# In a VM of banger's the agent itself, its program and its group are there.
refused sh -c 'find /run/banger -mindepth 1 ! -name banger-agent | grep .'
# alice's own slice ends with her session.
refused sh -c 'find /sys/fs/cgroup -name user.slice -prune -o -name "*banger*" ! -name "banger-agent*" -print | grep .'
refused sh -c 'find /usr /lib -xdev -name "*banger*" | grep -v /usr/share/doc | grep .'
refused getent hosts web.vm
test -s /var/lib/banger/banger.db
dpkg -P banger
for path in /var/lib/banger /etc/banger /etc/systemd/system/multi-user.target.wants/bangerd.service; do
	[ ! -e $path ] || fail "a purge leaves $path"
done
refused getent group banger
