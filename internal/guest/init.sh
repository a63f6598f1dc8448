#!/bin/busybox sh
# The first process of a guest: sets it up, runs /script, and goes on with the
# root that this has mounted, or says how it ended.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /mnt /etc /sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ln -sf /proc/mounts /etc/mtab
for module in $(cat /modules/order); do
  insmod "/modules/$module.ko" || echo "guest: cannot load $module"
done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
sh -e /script
status=$?
if test $status = 0 && test -x /mnt/sbin/init; then
  exec switch_root /mnt /sbin/init
fi
echo "guest: status $status"
poweroff -f
