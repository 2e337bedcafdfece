package doctor

import "context"

// daemons are those whose needs a check examines.
type daemons int

const (
	both     daemons = iota
	rootOnly         // root's daemon
	userOnly         // an ordinary user's daemon
)

// check is one row: a name, the daemons that need it, and what looks. look ends with ctx, if the
// kernel lets it.
type check struct {
	name string
	of   daemons
	look func(h *Host, ctx context.Context) finding
}

var checks = []check{
	{"daemon", both, (*Host).daemon},
	{"kvm", both, (*Host).kvm},
	{"qemu", both, (*Host).qemu},
	{"qemu-img", both, (*Host).qemuImg},
	{"mke2fs", both, (*Host).mke2fs},
	{"fuse", both, (*Host).fuse},
	{"fusermount3", userOnly, (*Host).fusermount},
	{"allow-other", userOnly, (*Host).allowOther},
	{"tun", rootOnly, (*Host).tun},
	{"nftables", rootOnly, (*Host).nftables},
	{"firewalld", rootOnly, (*Host).firewalld},
	{"ufw", rootOnly, (*Host).ufw},
	{"docker", rootOnly, (*Host).docker},
	{"resolved", rootOnly, (*Host).resolved},
	{"vhost-vsock", both, (*Host).vsock},
	{"cgroup", both, (*Host).cgroup},
	{"landlock", both, (*Host).landlock},
	{"seccomp", both, (*Host).seccomp},
	{"oom", rootOnly, (*Host).oom},
	{"huge-pages", both, (*Host).hugePages},
	{"memory", both, (*Host).memory},
	{"disk", both, (*Host).disk},
	{"image", both, (*Host).image},
	{"busybox", both, (*Host).busybox},
	{"banger-agent", both, (*Host).agent},
	{"mmdebstrap", both, (*Host).mmdebstrap},
	{"subuid", userOnly, (*Host).subuid},
}
