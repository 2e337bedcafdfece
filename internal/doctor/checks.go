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
	name  string
	of    daemons
	heavy bool // it starts a program or a guest, or loads modules
	look  func(h *Host, ctx context.Context) finding
}

var checks = []check{
	{"daemon", both, false, (*Host).daemon},
	{"kvm", both, true, (*Host).kvm},
	{"qemu", both, true, (*Host).qemu},
	{"qemu-img", both, false, (*Host).qemuImg},
	{"mke2fs", both, false, (*Host).mke2fs},
	{"fuse", both, false, (*Host).fuse},
	{"fusermount3", userOnly, false, (*Host).fusermount},
	{"allow-other", userOnly, false, (*Host).allowOther},
	{"tun", rootOnly, false, (*Host).tun},
	{"nftables", rootOnly, true, (*Host).nftables},
	{"firewalld", rootOnly, false, (*Host).firewalld},
	{"ufw", rootOnly, false, (*Host).ufw},
	{"docker", rootOnly, false, (*Host).docker},
	{"resolved", rootOnly, false, (*Host).resolved},
	{"vhost-vsock", both, false, (*Host).vsock},
	{"cgroup", both, false, (*Host).cgroup},
	{"landlock", both, false, (*Host).landlock},
	{"seccomp", both, false, (*Host).seccomp},
	{"oom", rootOnly, false, (*Host).oom},
	{"huge-pages", both, false, (*Host).hugePages},
	{"memory", both, false, (*Host).memory},
	{"disk", both, false, (*Host).disk},
	{"image", both, false, (*Host).image},
	{"busybox", both, false, (*Host).busybox},
	{"banger-agent", both, false, (*Host).agent},
	{"mmdebstrap", both, false, (*Host).mmdebstrap},
	{"subuid", userOnly, false, (*Host).subuid},
}
