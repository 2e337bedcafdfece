# The programs, the service and the built-in image are there.
install -m 755 $LAB/programs/* /usr/local/bin/
mkdir -p /var/lib/banger/images
cp -r $LAB/builtin /var/lib/banger/images/
modprobe -a kvm_amd vhost_vsock tun fuse || modprobe -a kvm_intel vhost_vsock tun fuse
cat >/etc/systemd/system/bangerd.service <<'UNIT'
[Service]
Type=notify
ExecStart=/usr/local/bin/bangerd
KillMode=process
Restart=on-failure
UNIT
systemctl daemon-reload
systemctl start bangerd
is active systemctl is-active bangerd
matches ' accel=kvm ' journalctl -u bangerd -o cat --no-pager
