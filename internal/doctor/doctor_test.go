package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/host"
	"banger/internal/kvm"

	"golang.org/x/sys/unix"
)

// huge is the directory of the settings of huge pages.
const huge = "sys/kernel/mm/transparent_hugepage/"

// hers is the file of the controllers that systemd hands to the user 1000.
const hers = "user.slice/user-1000.slice/user@1000.service/cgroup.controllers"

// sound are the files of a host on which nothing is missing.
var sound = map[string]string{
	"proc/cpuinfo":                           "processor\t: 0\nflags\t\t: fpu svm\n",
	"proc/meminfo":                           "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
	"proc/self/status":                       "CapEff:\t000001ffffffffff\nSeccomp:\t0\n",
	"proc/self/mountinfo":                    "24 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
	"proc/self/cgroup":                       "0::/system.slice/ssh.service\n",
	"sys/fs/cgroup/cgroup.controllers":       "cpuset cpu io memory pids\n",
	"sys/fs/cgroup/" + hers:                  "cpu memory pids\n",
	huge + "enabled":                         "always [madvise] never\n",
	huge + "shmem_enabled":                   "always [never] force\n",
	"etc/fuse.conf":                          "# x\nuser_allow_other\n",
	"etc/subuid":                             "alice:100000:65536\n",
	"etc/subgid":                             "alice:100000:65536\n",
	"etc/nsswitch.conf":                      "hosts: files dns\n",
	"etc/resolv.conf":                        "nameserver 127.0.0.53\n",
	"run/systemd/system/x":                   "",
	"usr/lib/systemd/system/bangerd.service": "",
	"usr/lib/systemd/user/bangerd.service":   "",
	"dev/fuse":                               "",
	"dev/net/tun":                            "",
	"dev/vhost-vsock":                        "",
	"mnt/images/builtin/status":              "ready\n",
	"bin/qemu-img":                           "",
	"bin/mke2fs":                             "",
	"bin/mmdebstrap":                         "",
	"bin/newuidmap":                          "",
	"bin/apt-get":                            "",
	"bin/qemu-system-x86_64": "#!/bin/sh\n" +
		`echo '{"QMP":{"version":{"qemu":{"micro":3,"minor":2,"major":9}}}}'` + "\n",
	"bin/fusermount3": "",
}

// fixture is a sound host below a directory of the test's.
func fixture(t *testing.T, uid int) *Host {
	root := t.TempDir()
	h := &Host{Root: root, UID: uid, User: "alice", Version: "1.2", Programs: root + "/bin",
		Mount: root + "/mnt", Served: map[string]string{"qemu": "auto"}, Daemon: "1.2",
		StateDir: root + "/state",
		Config:   "/etc/banger/config.toml",
		KVM:      func(context.Context, string) error { return nil },
		Nft:      func() error { return nil },
		Landlock: func() (int, error) { return 5, nil },
		Free:     func(string) (uint64, error) { return 9 << 30, nil },
		Dial:     func(string) error { return nil },
		Open:     openBoth,
	}
	h.Find = func(program string) string {
		path := filepath.Join(root, "bin", program)
		if _, err := os.Stat(path); err != nil {
			return ""
		}
		return path
	}
	for name, text := range sound {
		put(t, h, name, text)
	}
	must(t, os.Chmod(root+"/bin/fusermount3", 0o755|fs.ModeSetuid))
	for _, name := range []string{"busybox", "banger-agent"} {
		must(t, os.WriteFile(root+"/bin/"+name, staticELF(), 0o755))
	}
	return h
}

// staticELF returns a program without an interpreter: the header of an ELF file alone.
func staticELF() []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20] = 2, 62, 1 // ET_EXEC, EM_X86_64, EV_CURRENT
	b[52], b[54], b[58] = 64, 56, 64
	return b
}

// dynamicELF returns one with an interpreter.
func dynamicELF() []byte {
	b := append(staticELF(), make([]byte, 56)...)
	b[32], b[56], b[64] = 64, 1, 3 // a program header at 64, PT_INTERP
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, h *Host, name, text string) {
	t.Helper()
	path := filepath.Join(h.Root, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o755))
}

// TestSound expects no warning about sound hosts.
func TestSound(t *testing.T) {
	for _, uid := range []int{0, 1000} {
		if uid != 0 && os.Getuid() != 0 {
			t.Skip("run as root: fusermount3 has to belong to root")
		}
		all := Examine(t.Context(), fixture(t, uid))
		for _, r := range all {
			if r.Status != OK || r.Remedy != "" || r.Found == "" {
				t.Errorf("uid %d: %+v", uid, r)
			}
		}
		if Failed(all) || len(all) < 20 {
			t.Errorf("uid %d: %d results", uid, len(all))
		}
	}
}

// remedies has a row for each remedy: what is done to a sound host, and the line that follows, with
// ROOT in the place of the fixture's directory.
var remedies = []struct {
	uid   int
	check string
	harm  func(t *testing.T, h *Host)
	want  string
}{
	{0, "daemon", mute(fs.ErrNotExist),
		"warn no daemon serves ROOT/mnt; systemctl enable --now bangerd"},
	{1000, "daemon", mute(fs.ErrNotExist),
		"warn no daemon serves ROOT/mnt; systemctl --user enable --now bangerd"},
	{0, "daemon", both2(mute(fs.ErrNotExist), remove("run/systemd")),
		"warn no daemon serves ROOT/mnt; bangerd"},
	{0, "daemon", mute(syscall.ENOTCONN),
		"warn the daemon that served ROOT/mnt has ended; systemctl enable --now bangerd"},
	{0, "daemon", mute(errHangs),
		"fail the daemon that serves ROOT/mnt does not answer; systemctl restart bangerd"},
	{1000, "daemon", mute(fs.ErrPermission), "warn ROOT/mnt is not this user's; " +
		"sudo usermod -aG banger alice, and log in again"},
	{1000, "daemon", set(func(h *Host) { h.Mount = "" }), "warn XDG_RUNTIME_DIR is not set, so " +
		"there is no place for the mount; log in through PAM's systemd session, or set BANGER_MOUNT"},
	{0, "daemon", set(func(h *Host) { h.Daemon = "1.1" }),
		"warn serves ROOT/mnt with version 1.1, and banger is 1.2; systemctl restart bangerd"},
	{0, "daemon", both2(set(func(h *Host) { h.Daemon = "1.1" }), remove("run/systemd")),
		"warn serves ROOT/mnt with version 1.1, and banger is 1.2; " +
			"end bangerd with Ctrl-C or SIGTERM, and start it again"},

	{0, "kvm", noKVM(kvm.ErrNoFlag),
		"warn the processor shows neither svm nor vmx: guests run under " +
			"TCG, about ten times slower; switch on VT-x or AMD-V in the firmware or, in a VM, " +
			"nested virtualisation on its host"},
	{0, "kvm", noKVM(fs.ErrNotExist), "warn file does not exist: guests run under TCG, " +
		"about ten times slower; modprobe kvm_amd"},
	{1000, "kvm", noKVM(fs.ErrPermission), "warn permission denied: guests run under TCG, " +
		"about ten times slower; sudo usermod -aG kvm alice, and log in again"},
	{0, "kvm", noKVM(syscall.EBUSY), "warn device or resource busy: guests run under TCG, " +
		"about ten times slower; end the VMs of the other hypervisor, or rmmod vboxdrv"},
	{0, "kvm", noKVM(kvm.ErrHangs),
		"warn KVM begins to run a guest and does not return: guests run " +
			`under TCG, about ten times slower; echo 'accel = "tcg"' >> /etc/banger/config.toml, ` +
			"and restart bangerd"},
	{0, "kvm", noKVM(context.DeadlineExceeded),
		"warn KVM made no guest within 5s; try again when the " +
			"host is less busy; banger doctor"},
	{0, "kvm", both2(noKVM(fs.ErrNotExist), serve("accel", "kvm")),
		"fail the daemon is to use KVM, but file does not exist; modprobe kvm_amd"},

	{0, "qemu", remove("bin/qemu-system-x86_64"),
		"fail no qemu-system-x86_64; apt install qemu-system-x86"},
	{0, "qemu", file("bin/qemu-system-x86_64", "#!/bin/sh\necho no tcg >&2; exit 1\n"),
		"warn ROOT/bin/qemu-system-x86_64 runs guests under KVM only: exit status 1: no tcg; " +
			"apt install qemu-system-x86"},
	{0, "qemu", both2(noKVM(kvm.ErrNoFlag),
		file("bin/qemu-system-x86_64", "#!/bin/sh\necho no tcg >&2; exit 1\n")),
		"fail ROOT/bin/qemu-system-x86_64 does not start: exit status 1: no tcg; " +
			"apt install qemu-system-x86"},
	{0, "qemu", file("bin/qemu-system-x86_64", "#!/bin/sh\n[ $2 = q35 ] || exit 1\n"+
		`echo '{"QMP":{"version":{"qemu":{"micro":0,"minor":1,"major":4}}}}'`),
		"warn ROOT/bin/qemu-system-x86_64 4.1.0 has no machine microvm: guests boot on q35, " +
			"more slowly; apt install qemu-system-x86"},
	{1000, "qemu", both2(remove("bin/apt-get"), both2(file("bin/dnf", ""),
		remove("bin/qemu-system-x86_64"))),
		"fail no qemu-system-x86_64; sudo dnf install qemu-system-x86-core"},
	{0, "qemu", both2(remove("bin/apt-get"), remove("bin/qemu-system-x86_64")),
		"fail no qemu-system-x86_64; install qemu by the host's means"},
	{0, "qemu", serve("qemu", "/opt/none"), "fail no /opt/none; apt install qemu-system-x86"},
	{0, "qemu-img", remove("bin/qemu-img"), "fail no qemu-img; apt install qemu-utils"},
	{0, "mke2fs", remove("bin/mke2fs"), "fail no mke2fs; apt install e2fsprogs"},

	{0, "fuse", remove("dev/fuse"), "fail /dev/fuse: no such file or directory; modprobe fuse"},
	{1000, "fuse", refuse(fs.ErrPermission),
		"fail /dev/fuse is not this user's; sudo chmod 666 /dev/fuse"},
	{1000, "fusermount3", remove("bin/fusermount3"), "fail no fusermount3; sudo apt install fuse3"},
	{1000, "fusermount3", chmod("bin/fusermount3", 0o755),
		"fail ROOT/bin/fusermount3 is not setuid " +
			"root, so no ordinary user mounts; " +
			"sudo sh -c \"chown root ROOT/bin/fusermount3 && chmod u+s ROOT/bin/fusermount3\""},
	{1000, "allow-other", file("etc/fuse.conf", "#user_allow_other\n"), "warn /etc/fuse.conf lacks " +
		"user_allow_other: only this user reads the mount, not even root; " +
		`sudo sh -c "echo user_allow_other >> /etc/fuse.conf"`},
	{0, "tun", remove("dev/net/tun"), "fail /dev/net/tun: no such file or directory; " +
		"VMs with net = bridge do not start; modprobe tun"},
	{0, "vhost-vsock", remove("dev/vhost-vsock"), "warn no /dev/vhost-vsock: guests' agents answer " +
		"over virtio-serial; modprobe vhost_vsock"},
	{1000, "vhost-vsock", refuse(fs.ErrPermission), "warn /dev/vhost-vsock is not this user's: " +
		"guests' agents answer over virtio-serial; sudo usermod -aG kvm alice, and log in again"},

	{0, "nftables", noNft(syscall.EOPNOTSUPP), "fail no table of nftables can be made: " +
		"operation not supported; modprobe -a nf_tables nft_masq nf_tables_bridge"},
	{0, "nftables", noNft(syscall.EPERM), "fail no table of nftables can be made: " +
		"operation not permitted; run bangerd with CAP_NET_ADMIN"},
	{0, "nftables", noNft(fmt.Errorf("%w: %w", errNoNamespace, syscall.EPERM)), "warn not tried: " +
		"no network namespace can be made to try it in: operation not permitted; nft list tables"},
	{0, "firewalld", both2(file("run/firewalld.pid", "77\n"), file("proc/77/comm", "")),
		"warn runs, and drops what guests send: banger0 is in no zone; " +
			"firewall-cmd --permanent --new-zone=banger && " +
			"firewall-cmd --permanent --zone=banger --set-target=ACCEPT && " +
			"firewall-cmd --permanent --zone=banger --add-interface=banger0 && firewall-cmd --reload"},
	{0, "ufw", file("etc/ufw/ufw.conf", "ENABLED=yes\n"), "warn is on, and drops what guests send; " +
		"ufw route allow in on banger0 && ufw route allow out on banger0 && " +
		"ufw allow in on banger0 to any port 53"},
	{0, "docker", both2(file("run/docker.pid", "5"), serve("bridge", "br7")),
		"warn runs, and drops what guests send beyond the host; " +
			"iptables -I DOCKER-USER -i br7 -j ACCEPT && iptables -I DOCKER-USER -o br7 -j ACCEPT"},
	{0, "resolved", undialled(syscall.ECONNREFUSED), "warn systemd-resolved does not run: the host " +
		`finds no name of a VM; echo 'hosts_file = "/etc/hosts"' >> /etc/banger/config.toml, ` +
		"and restart bangerd"},
	{0, "resolved", file("etc/resolv.conf", "nameserver 9.9.9.9\n"),
		"warn systemd-resolved runs, but " +
			"/etc/resolv.conf asks another resolver: the host finds no name of a VM; " +
			"ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"},

	{0, "cgroup", file("sys/fs/cgroup/cgroup.controllers", "cpu pids\n"), "warn version 2 without " +
		"memory: such limits are refused; add cgroup_enable=memory to the kernel's command line, " +
		"or start bangerd in a group that has them"},
	{1000, "cgroup", file("sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/"+
		"cgroup.controllers", "memory pids\n"), "warn version 2, but this user has no cpu: such " +
		"limits are refused; sudo sh -c 'mkdir -p /etc/systemd/system/user@.service.d && " +
		`printf "[Service]\nDelegate=cpu memory pids\n" ` +
		"> /etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload', " +
		"and log in again"},
	{1000, "cgroup", remove("sys/fs/cgroup/user.slice"),
		"warn systemd has no manager for this user: " +
			"VMs have no limits; sudo loginctl enable-linger alice"},
	{0, "cgroup", file("proc/self/mountinfo", ""), "warn no cgroups: limits of VMs are refused; " +
		"mount -t cgroup2 cgroup2 /sys/fs/cgroup"},
	{1000, "cgroup", file("proc/self/mountinfo",
		"24 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), "warn version 1, of which " +
		"ordinary users have none: limits of VMs are refused; " +
		"add systemd.unified_cgroup_hierarchy=1 to the kernel's command line"},
	{0, "cgroup", file("proc/self/mountinfo",
		"24 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), "warn version 1, with cpu " +
		"only: other limits are refused; " +
		"add systemd.unified_cgroup_hierarchy=1 to the kernel's command line"},
	{0, "landlock", set(func(h *Host) {
		h.Landlock = func() (int, error) { return 0, errors.New("no Landlock here") }
	}), "warn QEMU is not confined by Landlock: no Landlock here; " +
		"add landlock to lsm= of the kernel's command line, or boot Linux 5.13 or later"},
	{0, "seccomp", file("proc/self/status", "CapEff:\t00\n"),
		"fail the kernel has no seccomp filters, " +
			"without which no QEMU starts; boot a kernel with CONFIG_SECCOMP_FILTER"},
	{0, "oom", file("proc/self/status", "CapEff:\t00000000000000ff\n"),
		"warn the daemon may not lower " +
			"its oom_score_adj: the kernel may kill it before VMs; run bangerd with CAP_SYS_RESOURCE"},
	{1000, "huge-pages", file("sys/kernel/mm/transparent_hugepage/enabled",
		"always madvise [never]\n"),
		"warn transparent huge pages are off: guests run a little slower; " +
			`sudo sh -c "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"`},
	{0, "huge-pages", remove("sys/kernel/mm"),
		"warn the kernel has no transparent huge pages: guests " +
			"run a little slower; boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE"},
	{0, "memory", file("proc/meminfo", "MemAvailable: 409600 kB\n"),
		"warn 400 MiB available, little; " +
			"stop what else runs; see ps aux --sort -rss"},
	{0, "memory", file("proc/meminfo", "MemAvailable: 102400 kB\n"), "fail 100 MiB available, too " +
		"little for any guest; stop what else runs; see ps aux --sort -rss"},
	{0, "memory", file("proc/meminfo", "MemAvailable: x\n"),
		"warn /proc/meminfo does not say what is available; free -m"},
	{0, "disk", room(1<<30, nil), "warn 1024 MiB free for ROOT/state, little; " +
		"banger image gc, or state_dir on a larger file system"},
	{0, "disk", room(1<<20, nil), "fail 1 MiB free for ROOT/state, too little for any guest; " +
		"banger image gc, or state_dir on a larger file system"},
	{0, "disk", room(0, syscall.EIO), "warn the free space of ROOT/state is unknown: " +
		"input/output error; df -h ROOT/state"},
	{0, "image", remove("mnt/images"),
		"warn no image builtin: new VMs need one, or -i SOURCE; banger image builtin"},
	{0, "image", serve("image", "app"), "warn no image app: new VMs need one, or -i SOURCE; " +
		"banger image ls"},
	{0, "image", set(func(h *Host) { h.Served = nil }), "warn no image builtin: new VMs need one, " +
		"or -i SOURCE; banger image builtin"},
	{0, "image", file("mnt/images/builtin/status", "empty\n"),
		"warn the image builtin is empty; banger image builtin"},
	{0, "image", file("mnt/images/builtin/status", "failed no network\n"),
		"warn the image builtin could not be made: no network; banger image builtin"},
	{0, "image", file("mnt/images/builtin/status", "building 7\n"),
		"warn the image builtin is building 7 %; cat ROOT/mnt/images/builtin/wait/ready"},
	{0, "busybox", remove("bin/busybox"),
		"warn no busybox: the built-in image cannot be built; apt install busybox-static"},
	{0, "busybox", file("bin/busybox", string(dynamicELF())),
		"warn ROOT/bin/busybox is not static: " +
			"the built-in image cannot be built; apt install busybox-static"},
	{0, "banger-agent", remove("bin/banger-agent"), "warn no banger-agent beside banger or in " +
		"/usr/lib/banger: no image can be built; install banger's package again"},
	{1000, "mmdebstrap", remove("bin/mmdebstrap"),
		"warn no mmdebstrap: no image of debian:SUITE can " +
			"be made; sudo apt install mmdebstrap"},
	{1000, "subuid", remove("bin/newuidmap"), "warn no newuidmap: no image of debian:SUITE can be " +
		"made as this user; sudo apt install uidmap"},
	{1000, "subuid", file("etc/subgid", "bob:100000:65536\n"), "warn /etc/subgid has no range for " +
		"alice: no image of debian:SUITE can be made as this user; " +
		"sudo usermod --add-subgids 100000-165535 alice"},
	{1000, "subuid", file("proc/sys/kernel/unprivileged_userns_clone", "0\n"),
		"warn ordinary users " +
			"make no user namespaces: no image of debian:SUITE can be made as this user; " +
			"sudo sysctl -w kernel.unprivileged_userns_clone=1"},
}

type harm = func(t *testing.T, h *Host)

func set(do func(*Host)) harm { return func(_ *testing.T, h *Host) { do(h) } }

func both2(a, b harm) harm { return func(t *testing.T, h *Host) { a(t, h); b(t, h) } }

func mute(err error) harm { return set(func(h *Host) { h.Mute = err }) }

func noKVM(err error) harm {
	return set(func(h *Host) { h.KVM = func(context.Context, string) error { return err } })
}

func noNft(err error) harm { return set(func(h *Host) { h.Nft = func() error { return err } }) }

func undialled(err error) harm {
	return set(func(h *Host) { h.Dial = func(string) error { return err } })
}

func refuse(err error) harm {
	return set(func(h *Host) { h.Open = func(string) error { return err } })
}

func room(n uint64, err error) harm {
	return set(func(h *Host) { h.Free = func(string) (uint64, error) { return n, err } })
}

func serve(key, value string) harm { return set(func(h *Host) { h.Served[key] = value }) }

func file(name, text string) harm {
	return func(t *testing.T, h *Host) { put(t, h, name, text) }
}

func remove(name string) harm {
	return func(t *testing.T, h *Host) { must(t, os.RemoveAll(filepath.Join(h.Root, name))) }
}

func chmod(name string, mode fs.FileMode) harm {
	return func(t *testing.T, h *Host) { must(t, os.Chmod(filepath.Join(h.Root, name), mode)) }
}

// look runs one check and returns its line, as `STATUS FOUND; REMEDY`.
func look(t *testing.T, h *Host, name string) string {
	i := slices.IndexFunc(checks, func(c check) bool { return c.name == name })
	f := checks[i].look(h, t.Context())
	line := f.status + " " + f.found
	if f.remedy != "" {
		line += "; " + f.remedy
	}
	return strings.ReplaceAll(line, h.Root, "ROOT")
}

// TestRemedies does one harm after the other to sound hosts.
func TestRemedies(t *testing.T) {
	tried := map[string]bool{}
	for _, c := range remedies {
		h := fixture(t, c.uid)
		c.harm(t, h)
		if got := look(t, h, c.check); got != c.want {
			t.Errorf("%s, uid %d:\n got %s\nwant %s", c.check, c.uid, got, c.want)
		}
		tried[c.check] = true
	}
	for _, c := range checks {
		if !tried[c.name] {
			t.Errorf("no harm is done to %s", c.name)
		}
	}
}

// TestLetThrough has firewalls that were told about the bridge.
func TestLetThrough(t *testing.T) {
	for _, c := range []struct {
		check string
		done  harm
		want  string
	}{
		{"firewalld", both2(both2(file("run/firewalld.pid", "77\n"), file("proc/77/comm", "")),
			file("etc/firewalld/zones/banger.xml", `<zone target="ACCEPT">`+
				`<interface name="banger0"/></zone>`)), "ok runs, and has banger0 in a zone"},
		{"firewalld", file("run/firewalld.pid", "77\n"), "ok does not run"},
		{"image", both2(set(func(h *Host) { h.Served = nil }),
			file("state/images/builtin/image.json", "{}")), "ok new VMs boot builtin"},
		{"ufw", both2(file("etc/ufw/ufw.conf", "ENABLED=yes\n"), file("etc/ufw/user.rules",
			"-A ufw-user-forward -i banger0 -j ACCEPT\n")), "ok is on, and has rules for banger0"},
		{"docker", both2(file("run/docker.pid", "5"), file("bin/iptables",
			"#!/bin/sh\necho '-A DOCKER-USER -i banger0 -j ACCEPT'\n")),
			"ok runs, and lets banger0 through"},
		{"resolved", both2(undialled(syscall.ENOENT), serve("hosts_file", "/etc/hosts")),
			"ok the daemon keeps names of VMs in /etc/hosts"},
		{"resolved", serve("dns", "off"), "ok names are off"},
		{"resolved", both2(file("etc/resolv.conf", ""),
			file("etc/nsswitch.conf", "hosts: resolve [!UNAVAIL=return] dns\n")),
			"ok systemd-resolved finds names of VMs"},
		{"cgroup", file("proc/self/mountinfo",
			"24 1 0:22 / /c rw - cgroup cgroup rw,cpu,cpuacct,memory,pids\n"),
			"ok version 1, with cpu, memory, pids"},
	} {
		h := fixture(t, 0)
		c.done(t, h)
		if got := look(t, h, c.check); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.check, got, c.want)
		}
	}
}

// TestHostileFiles has a host whose files are FIFOs, endless, or of escape sequences.
func TestHostileFiles(t *testing.T) {
	h := fixture(t, 0)
	for name := range sound {
		if !strings.HasPrefix(name, "etc/") && !strings.HasPrefix(name, "proc/") {
			continue
		}
		path := filepath.Join(h.Root, name)
		must(t, errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)))
	}
	must(t, os.Remove(h.Root+"/proc/meminfo"))
	must(t, os.Symlink("/dev/zero", h.Root+"/proc/meminfo"))
	h.Daemon = "9\x1b[2J\nok    kvm               forged"
	h.Served["bridge"] = "b\u202e\u009b"
	put(t, h, "run/docker.pid", "")
	begun := time.Now()
	all := Examine(t.Context(), h)
	if took := time.Since(begun); took > heavyLimit {
		t.Errorf("it took %v", took)
	}
	var text, array strings.Builder
	must(t, errors.Join(WriteText(&text, all), WriteJSON(&array, all)))
	if n := strings.Count(text.String(), "\n"); n != len(all) {
		t.Errorf("%d lines for %d results", n, len(all))
	}
	for _, s := range []string{text.String(), array.String()} {
		if strings.ContainsAny(s, "\x1b\u009b\u202e") {
			t.Errorf("a control character in %q", s)
		}
	}
	var back []Result
	must(t, json.Unmarshal([]byte(array.String()), &back))
	if !slices.Equal(back, all) {
		t.Errorf("JSON has %v, not %v", back, all)
	}
}

// TestLate has a check whose time ends nothing.
func TestLate(t *testing.T) {
	h := fixture(t, 0)
	block := make(chan struct{})
	defer close(block)
	h.Nft = func() error { <-block; return nil }
	begun := time.Now()
	all := Examine(t.Context(), h)
	if took := time.Since(begun); took > 2*heavyLimit {
		t.Errorf("it took %v", took)
	}
	for _, r := range all {
		if (r.Status == Warn) != (r.Name == "nftables") {
			t.Errorf("%+v", r)
		}
	}
}

// TestNft makes tables in a namespace of their own.
func TestNft(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root")
	}
	before, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	if err := tryNft(); err != nil {
		t.Errorf("%v: modprobe nf_tables", err)
	}
	if after, _ := os.Readlink("/proc/self/ns/net"); after != before {
		t.Errorf("the process is in %s, not in %s", after, before)
	}
}

// TestNew asks a daemon that hangs, and one that serves.
func TestNew(t *testing.T) {
	mount := t.TempDir()
	must(t, os.WriteFile(mount+"/version", []byte("0.1\n"), 0o600))
	must(t, os.WriteFile(mount+"/config", []byte("state_dir /s\nsubnet 1.2.3.0/24 x\nnat\n"), 0o600))
	h := New("0.1", mount, host.Places{State: "/other", Config: "/c"})
	if h.Mute != nil || h.Daemon != "0.1" || h.StateDir != "/s" || h.Config != "/c" ||
		h.setting("subnet", "") != "1.2.3.0/24 x" || h.setting("nat", "off") != "off" {
		t.Errorf("%+v", h)
	}
	if h := New("0.1", mount+"/none", host.Places{State: "/other"}); !errors.Is(h.Mute,
		fs.ErrNotExist) || h.Served != nil || h.StateDir != "/other" {
		t.Errorf("%+v", h)
	}
}
