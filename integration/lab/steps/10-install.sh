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

if [ ! -e $M/images/builtin/digest ]; then
	cp -r "$LAB"/builtin /var/lib/banger/images/
	systemctl restart bangerd
fi
