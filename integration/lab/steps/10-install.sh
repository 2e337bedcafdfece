# The package: its service runs and uses KVM, and the image is made on this host.
apt-get install -q -y --no-install-recommends "$LAB"/banger_*.deb
is active systemctl is-active bangerd
is enabled systemctl is-enabled bangerd
matches "^$(dpkg-query -W -f '${Version}' banger)\$" cat $M/version
matches ' accel=kvm ' journalctl -u bangerd -o cat --no-pager
for device in kvm vhost-vsock net/tun fuse; do
	[ -c /dev/$device ] || fail "/dev/$device is missing"
done
for file in /usr/share/man/man1/banger.1.gz /usr/share/bash-completion/completions/banger \
	/etc/banger/config.toml /usr/lib/systemd/user/bangerd.service; do
	[ -s $file ] || fail "$file is missing"
done
matches '^banger:' getent group banger

# Without an image the daemon and `banger run` say what to type. There is no package of a kernel here: the host's serves.
if [ "$(cat $M/images/builtin/status 2>/dev/null)" != ready ]; then
	matches 'banger image builtin' journalctl -u bangerd -o cat --no-pager
	matches 'banger image builtin' sh -c '! banger run none 2>&1'
	[ ! -e $M/vms/none ] || fail 'a run without an image leaves its VM'
	timeout 120 banger image builtin
fi
