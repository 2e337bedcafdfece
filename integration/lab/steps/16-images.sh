# An image is built in the confined service, by a worker without rights.
mkdir -p /tmp/root/bin /tmp/root/sbin
cp /bin/busybox /tmp/root/bin/
ln -s ../bin/busybox /tmp/root/sbin/init
tar -C /tmp/root -cf /tmp/root.tar .
timeout 120 banger image pull rootfs:/tmp/root.tar small
is ready cat $M/images/small/status
banger image rm small
rm -r /tmp/root /tmp/root.tar
