package boot

import (
	"context"
	"path"
	"strings"

	"banger/internal/host"
)

// moduleList is the file from which the agent reads the modules to load: absolute paths, one a
// line, in order.
const moduleList = "etc/banger/modules"

// guestFiles are the small files of the built-in image.
var guestFiles = []struct {
	name string
	text string
}{
	{"etc/group", "root:x:0:\nnogroup:x:65534:\n"},
	{"etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
	{"etc/passwd", "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
	{"etc/profile", "export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root\n" +
		"export PS1='\\h:\\w\\$ '\n"},
	{"etc/resolv.conf", ""},
	{"etc/services", "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n"},
}

// dhcpScript is run by busybox's udhcpc in guests on a network that banger does not configure
// (net = user).
const dhcpScript = `#!/bin/sh
case $1 in
deconfig) ip addr flush dev "$interface"; ip link set "$interface" up ;;
bound|renew)
	ip addr flush dev "$interface"
	ip addr add "$ip/$mask" dev "$interface"
	for r in $router; do ip route replace default via "$r" dev "$interface"; done
	for d in $dns; do echo "nameserver $d"; done >/etc/resolv.conf ;;
esac
`

// Guest names the programs in the root file system of the built-in image.
type Guest struct {
	Agent   []byte   // the static banger-agent, which becomes /init
	Busybox []byte   // a static busybox
	Applets []string // the names under which busybox is called
	Modules []Module // in the order in which the guest loads them
}

// Initramfs returns the guest's root file system as an archive for the kernel. That of an empty
// Guest holds the files that this package adds, and changes with them.
func (g Guest) Initramfs() ([]byte, error) { return packInitramfs(g.entries()) }

func (g Guest) entries() []entry {
	entries := []entry{
		dirEntry("bin", 0o755), dirEntry("dev", 0o755), dirEntry("dev/pts", 0o755),
		dirEntry("etc", 0o755), dirEntry("etc/banger", 0o755),
		dirEntry("lib", 0o755), dirEntry("lib/modules", 0o755),
		dirEntry("mnt", 0o755), dirEntry("proc", 0o555), dirEntry("root", 0o700),
		dirEntry("run", 0o755), dirEntry("sys", 0o555), dirEntry("tmp", 0o1777),
		dirEntry("etc/udhcpc", 0o755), dirEntry("usr", 0o755),
		dirEntry("var", 0o755), dirEntry("var/log", 0o755),
		linkEntry("sbin", "bin"), linkEntry("usr/bin", "../bin"), linkEntry("usr/sbin", "../bin"),
		linkEntry("var/run", "../run"), linkEntry("var/tmp", "../tmp"),
		deviceEntry("dev/console", 0o600, 5, 1), deviceEntry("dev/null", 0o666, 1, 3),
		fileEntry("bin/busybox", 0o755, g.Busybox),
		fileEntry("init", 0o755, g.Agent),
		fileEntry("etc/udhcpc/default.script", 0o755, []byte(dhcpScript)),
	}
	for _, f := range guestFiles {
		entries = append(entries, fileEntry(f.name, 0o644, []byte(f.text)))
	}
	for _, a := range g.Applets {
		entries = append(entries, linkEntry("bin/"+a, "busybox"))
	}
	return append(entries, moduleEntries(g.Modules)...)
}

// moduleEntries returns the files of modules, and their list.
func moduleEntries(modules []Module) (entries []entry) {
	var list strings.Builder
	for _, m := range modules {
		name := path.Join("lib/modules", m.Name+".ko")
		entries = append(entries, fileEntry(name, 0o644, m.Data))
		list.WriteString("/" + name + "\n")
	}
	return append(entries, fileEntry(moduleList, 0o644, []byte(list.String())))
}

// Applets returns the names under which a busybox can be called, without its own. It runs busybox.
func Applets(ctx context.Context, busybox string) ([]string, error) {
	out, err := host.Run(ctx, "", busybox, "--list")
	if err != nil {
		return nil, err
	}
	return appletNames(string(out)), nil
}

func appletNames(out string) []string {
	seen := map[string]bool{"busybox": true}
	var names []string
	for name := range strings.FieldsSeq(out) {
		if !seen[name] && !strings.Contains(name, "/") {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}
