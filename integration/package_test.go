package integration

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// makePackages makes the packages of a version once, in a copy of the tree, and returns its bin.
var makePackages = sync.OnceValues(func() (string, error) {
	tree := filepath.Join(bin, "tree")
	script := `mkdir "$1" && cp -r Makefile README.md SECURITY.md LICENSE CHANGELOG.md go.mod go.sum \
		cmd collector contrib docs examples fs integration internal vmm "$1"`
	copied := exec.Command("sh", "-c", script, "sh", tree)
	copied.Dir = module
	if out, err := copied.CombinedOutput(); err != nil {
		return string(out), err
	}
	made := exec.Command("make", "-s", "deb", "rpm", "VERSION="+packageVersion)
	made.Dir = tree
	made.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := made.CombinedOutput(); err != nil {
		return string(out), err
	}
	return filepath.Join(tree, "bin"), nil
})

const packageVersion = "1.2.3~git4.g5"

// output returns what a program prints.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.Bytes())
	}
	return string(out)
}

// packages returns the paths of both packages.
func packages(t *testing.T) (deb, rpm string) {
	dir, err := makePackages()
	if err != nil {
		t.Fatalf("%v\n%s", err, dir)
	}
	deb = filepath.Join(dir, "banger_"+packageVersion+"_amd64.deb")
	return deb, filepath.Join(dir, "banger-"+packageVersion+"-1.x86_64.rpm")
}

// installed are files of both packages, with their modes. They have more.
var installed = map[string]string{
	"/usr/bin/bangerd":                                 "-rwxr-xr-x",
	"/usr/bin/banger":                                  "-rwxr-xr-x",
	"/usr/lib/banger/banger-agent":                     "-rwxr-xr-x",
	"/usr/lib/banger/end":                              "-rwxr-xr-x",
	"/usr/share/man/man1/banger.1.gz":                  "-rw-r--r--",
	"/usr/share/man/man5/banger.5.gz":                  "-rw-r--r--",
	"/usr/share/man/man8/bangerd.8.gz":                 "-rw-r--r--",
	"/usr/share/bash-completion/completions/banger":    "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/banger.fish": "-rw-r--r--",
	"/usr/lib/systemd/system/bangerd.service":          "-rw-r--r--",
	"/usr/lib/systemd/system/banger@.service":          "-rw-r--r--",
	"/usr/lib/systemd/user/bangerd.service":            "-rw-r--r--",
	"/usr/lib/sysusers.d/banger.conf":                  "-rw-r--r--",
	"/usr/lib/tmpfiles.d/banger.conf":                  "-rw-r--r--",
	"/usr/lib/modules-load.d/banger.conf":              "-rw-r--r--",
	"/etc/banger/config.toml":                          "-rw-r--r--",
}

// TestPackages expects of both packages the same files, the right version and the configuration as
// a file of the administrator's.
func TestPackages(t *testing.T) {
	deb, rpm := packages(t)
	extra := map[string]string{
		"/usr/share/zsh/vendor-completions/_banger": "-rw-r--r--",
		"/usr/share/doc/banger/copyright":           "-rw-r--r--",
		"/usr/share/doc/banger/CHANGELOG.md.gz":     "-rw-r--r--",
	}
	files := map[string]string{}
	for line := range strings.Lines(output(t, "dpkg-deb", "-c", deb)) {
		words := strings.Fields(line) // mode, owner, size, date, time, path
		if words[1] != "root/root" {
			t.Errorf("not root's: %s", line)
		}
		files[strings.TrimPrefix(words[5], ".")] = words[0]
	}
	checkFiles(t, deb, files, extra)
	fields := output(t, "dpkg-deb", "-f", deb, "Version", "Architecture", "Depends")
	if !strings.HasPrefix(fields, "Version: "+packageVersion+"\nArchitecture: amd64\n") ||
		!strings.Contains(fields, "qemu-system-x86,") {
		t.Errorf("%s: %s", deb, fields)
	}
	if got := output(t, "dpkg-deb", "-I", deb, "conffiles"); got != "/etc/banger/config.toml\n" {
		t.Errorf("conffiles %q", got)
	}

	extra = map[string]string{
		"/usr/share/zsh/site-functions/_banger": "-rw-r--r--",
		"/usr/share/licenses/banger/LICENSE":    "-rw-r--r--",
	}
	files = map[string]string{}
	query := "[%{FILEMODES:perms} %{FILEFLAGS:fflags} %{FILENAMES}\n]"
	for line := range strings.Lines(output(t, "rpm", "-qp", "--qf", query, rpm)) {
		mode, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		flags, path, _ := strings.Cut(rest, " ")
		files[path] = mode
		if (flags == "cn") != (path == "/etc/banger/config.toml") {
			t.Errorf("%s: %s has the flags %q", rpm, path, flags)
		}
	}
	checkFiles(t, rpm, files, extra)
	query = "%{NAME} %{VERSION} %{RELEASE} %{ARCH} %{LICENSE}"
	want := "banger " + packageVersion + " 1 x86_64 Apache-2.0"
	if got := output(t, "rpm", "-qp", "--qf", query, rpm); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func checkFiles(t *testing.T, name string, files, extra map[string]string) {
	t.Helper()
	for _, all := range []map[string]string{installed, extra} {
		for path, mode := range all {
			if files[path] != mode {
				t.Errorf("%s has %s with the mode %q, want %s", name, path, files[path], mode)
			}
		}
	}
}

// TestPackagedPrograms expects programs that run everywhere, that say the package's version, and
// units without errors.
func TestPackagedPrograms(t *testing.T) {
	deb, _ := packages(t)
	root := t.TempDir()
	output(t, "dpkg-deb", "-x", deb, root)
	for _, name := range []string{
		"usr/bin/bangerd", "usr/bin/banger", "usr/lib/banger/banger-agent",
	} {
		program, err := elf.Open(filepath.Join(root, name))
		must(t, err)
		for _, part := range program.Progs {
			if part.Type == elf.PT_INTERP {
				t.Errorf("%s is not static", name)
			}
		}
		program.Close()
	}
	got := output(t, filepath.Join(root, "usr/bin/bangerd"), "--version")
	if got != packageVersion+"\n" {
		t.Errorf("version %q", got)
	}
	completed := output(t, filepath.Join(root, "usr/bin/banger"), "__complete", "doct")
	if !strings.HasPrefix(completed, "doctor\t") {
		t.Errorf("completions of doct: %q", completed)
	}
	licences, err := os.ReadFile(filepath.Join(root, "usr/share/doc/banger/copyright"))
	must(t, err)
	for _, linked := range []string{
		"github.com/hanwen/go-fuse/v2@", "modernc.org/sqlite@", "Go standard library",
	} {
		if !bytes.Contains(licences, []byte(linked)) {
			t.Errorf("the licence of %s is missing", linked)
		}
	}
	checkUnits(t, root)
}

// checkUnits expects that systemd accepts what is installed for it below root.
func checkUnits(t *testing.T, root string) {
	output(t, "systemd-analyze", "verify", "--root="+root, "--man=no", "--recursive-errors=no",
		"bangerd.service", "banger@web.service")
	output(t, "systemd-sysusers", "--root="+root, "banger.conf")
	groups, err := os.ReadFile(filepath.Join(root, "etc/group"))
	if err != nil || !bytes.Contains(groups, []byte("banger:")) {
		t.Errorf("systemd-sysusers makes the groups %q, %v", groups, err)
	}
	output(t, "systemd-tmpfiles", "--root="+root, "--create", "banger.conf")
	if _, err := os.Stat(filepath.Join(root, "run/banger")); err != nil {
		t.Error(err)
	}
	const service = "../contrib/package/bangerd.service"
	got := output(t, "systemd-analyze", "security", "--offline=true", service)
	level := regexp.MustCompile(`exposure level for bangerd.service: ([0-9.]+)`).
		FindStringSubmatch(got)
	if level == nil {
		t.Fatalf("no exposure level in %s", got)
	}
	// See docs/decisions.md for what keeps it from being lower.
	if exposed, err := strconv.ParseFloat(level[1], 64); err != nil || exposed > 6.5 {
		t.Errorf("the service's exposure level is %v, %v", exposed, err)
	}
}

// TestPackageScripts installs, upgrades, removes and purges the package in a root of its own,
// without systemd, and expects nothing to be left.
func TestPackageScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("dpkg needs root")
	}
	deb, _ := packages(t)
	script := strings.NewReplacer("DEB", deb).Replace(`set -eu
root=$1
mkdir -p $root/var/lib/dpkg/info $root/var/lib/dpkg/updates $root/dev $root/proc
for dir in usr etc; do mkdir $root/$dir; done
touch $root/var/lib/dpkg/status
for dir in bin sbin lib lib64; do ln -s usr/$dir $root/$dir; done
mkdir $root/lower; mount -t tmpfs tmpfs $root/lower
over() { # DIR: the host's, with changes that go
	mkdir $root/lower/$1 $root/lower/$1.work
	mount -t overlay -o lowerdir=/$1,upperdir=$root/lower/$1,workdir=$root/lower/$1.work \
		overlay $root/$1
}
over usr
over etc
mount --rbind /proc $root/proc
mount --rbind /dev $root/dev
dpkg="dpkg --root=$root --force-depends"
if find $root/usr -xdev -name '*banger*' | grep .; then echo 'banger is installed here'; exit 1; fi
$dpkg -i DEB
chroot $root /usr/bin/bangerd --version
grep '^banger:' $root/etc/group
echo '# mine' >> $root/etc/banger/config.toml
$dpkg -i DEB
grep '^# mine' $root/etc/banger/config.toml
mkdir -p $root/var/lib/banger; echo x > $root/var/lib/banger/disk
echo IMAGE=debian:bookworm > $root/etc/banger/web.env
$dpkg -r banger
test -e $root/var/lib/banger/disk
test -e $root/etc/banger/config.toml
if find $root/lower/usr -name '*banger*' ! -type c | grep .; then exit 1; fi
$dpkg -P banger
test ! -e $root/var/lib/banger
test ! -e $root/etc/banger
if grep '^banger:' $root/etc/group; then exit 1; fi
`)
	cmd := exec.Command("unshare", "--mount", "--propagation=private",
		"bash", "-c", script, "bash", t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPackageVersions expects of a commit a version that sorts above that of the commit before, and
// below that of the tag to come.
func TestPackageVersions(t *testing.T) {
	tree := t.TempDir()
	script := `set -eu
mkdir -p contrib/package; cp "$1" contrib/package/; echo '## 0.1.0' > CHANGELOG.md
git init -q; git config user.email me@example.com; git config user.name me
version() { sh contrib/package/version.sh; }
commit() { git add -A; git commit -q --allow-empty -m x; version; }
commit; commit; commit
git tag v0.1.0-rc1; version; commit
git tag v0.1.0; version
commit; commit
echo '## 0.2.0' > CHANGELOG.md; version; commit
git tag v0.2.0; version
`
	cmd := exec.Command("sh", "-c", script, "sh",
		filepath.Join(module, "contrib/package/version.sh"))
	cmd.Dir = tree
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	versions := strings.Fields(string(out))
	if len(versions) != 11 || versions[3] != "0.1.0~rc1" || versions[5] != "0.1.0" ||
		versions[10] != "0.2.0" {
		t.Errorf("versions %q", versions)
	}
	for i, v := range versions[1:] {
		if err := exec.Command("dpkg", "--compare-versions", versions[i], "lt", v).Run(); err != nil {
			t.Errorf("%s does not sort below %s: %v", versions[i], v, err)
		}
	}
}
