package doctor

// managers are programs that install packages, in the order in which they are looked for.
var managers = []struct{ program, install string }{
	{"apt-get", "apt install"},
	{"dnf", "dnf install"},
	{"zypper", "zypper install"},
	{"pacman", "pacman -S"},
}

// packages are the names of a package for each of managers; "" where there is none.
var packages = map[string][4]string{
	"qemu":       {"qemu-system-x86", "qemu-system-x86-core", "qemu-x86", "qemu-system-x86"},
	"qemu-img":   {"qemu-utils", "qemu-img", "qemu-tools", "qemu-img"},
	"e2fsprogs":  {"e2fsprogs", "e2fsprogs", "e2fsprogs", "e2fsprogs"},
	"fuse3":      {"fuse3", "fuse3", "fuse3", "fuse3"},
	"newuidmap":  {"uidmap", "shadow-utils", "shadow", "shadow"},
	"busybox":    {"busybox-static", "busybox", "busybox-static", "busybox"},
	"mmdebstrap": {"mmdebstrap", "mmdebstrap", "", ""},
}

// install returns the command that installs a package of packages on this host.
func (h *Host) install(name string) string {
	for i, m := range managers {
		if h.Find(m.program) == "" {
			continue
		}
		if there := packages[name][i]; there != "" {
			return h.asRoot(m.install + " " + there)
		}
	}
	return "install " + name + " by the host's means"
}
