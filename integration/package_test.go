package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// output runs a command in the source tree and returns what it prints.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = ".."
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// makes runs targets of the Makefile. They write into bin, which no other test uses.
func makes(t *testing.T, args ...string) string {
	t.Helper()
	return output(t, "make", append([]string{"-s", "--no-print-directory"}, args...)...)
}

// installed are all files but the documentation: mode and path, below /usr but for the last.
var installed = []string{
	"755 /usr/bin/banger", "755 /usr/bin/bangerd", "755 /usr/lib/banger/banger-agent",
	"755 /usr/lib/banger/end", "644 /usr/lib/modules-load.d/banger.conf",
	"644 /usr/lib/systemd/system/banger@.service", "644 /usr/lib/systemd/system/bangerd.service",
	"644 /usr/lib/systemd/user/bangerd.service", "644 /usr/lib/sysusers.d/banger.conf",
	"644 /usr/lib/tmpfiles.d/banger.conf",
	"644 /usr/share/bash-completion/completions/banger",
	"644 /usr/share/fish/vendor_completions.d/banger.fish",
	"644 /usr/share/man/man1/banger.1.gz", "644 /usr/share/man/man5/banger.5.gz",
	"644 /usr/share/man/man8/bangerd.8.gz", "644 /etc/banger/config.toml",
}

// files returns the files below root as `MODE PATH`, without documentation and zsh's completions,
// whose directory differs.
func files(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(output(t, "find", root, "-type", "f", "-printf", "%m /%P\n") + "\n") {
		line = strings.TrimSpace(line)
		if !strings.Contains(line, " /usr/share/doc/") && !strings.Contains(line, "/zsh/") &&
			!strings.Contains(line, " /usr/share/licenses/") {
			all = append(all, line)
		}
	}
	return all
}

func sameFiles(t *testing.T, what string, got []string) {
	t.Helper()
	want := slices.Clone(installed)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s has\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestPackages makes both packages and an installation without one: they have the same files, and
// what a package manager must know.
func TestPackages(t *testing.T) {
	built := strings.Fields(makes(t, "deb", "rpm"))
	find := func(ending string) string {
		i := slices.IndexFunc(built, func(s string) bool { return strings.HasSuffix(s, ending) })
		if i < 0 {
			t.Fatalf("make deb rpm printed no %s: %q", ending, built)
		}
		return built[i]
	}
	deb, rpm := find("_amd64.deb"), find(".x86_64.rpm")
	root := t.TempDir()
	makes(t, "install", "DESTDIR="+filepath.Join(root, "plain"), "PREFIX=/usr")
	output(t, "dpkg-deb", "-x", deb, filepath.Join(root, "deb"))
	output(t, "sh", "-c", "mkdir $1 && rpm2cpio $2 | (cd $1 && cpio -idm --quiet --no-absolute-filenames)", "sh",
		filepath.Join(root, "rpm"), rpm)
	for _, kind := range []string{"plain", "deb", "rpm"} {
		sameFiles(t, kind, files(t, filepath.Join(root, kind)))
	}

	version := output(t, "sh", "contrib/package/version.sh")
	for _, c := range []struct{ what, got, want string }{
		{"the deb", output(t, "dpkg-deb", "-f", deb, "Package", "Version", "Architecture"),
			"Package: banger\nVersion: " + version + "\nArchitecture: amd64"},
		{"the deb's conffiles", output(t, "dpkg-deb", "-I", deb, "conffiles"),
			"/etc/banger/config.toml"},
		{"the rpm", output(t, "rpm", "-qp", "--qf", "%{NAME} %{VERSION} %{ARCH} %{LICENSE}", rpm),
			"banger " + version + " x86_64 Apache-2.0"},
		{"the rpm's configuration", output(t, "rpm", "-qpc", rpm), "/etc/banger/config.toml"},
		{"bangerd", output(t, filepath.Join(root, "deb/usr/bin/bangerd"), "--version"),
			version},
		{"banger", output(t, filepath.Join(root, "rpm/usr/bin/banger"), "--version"),
			"banger version " + version},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, want %q", c.what, c.got, c.want)
		}
	}
	owners := output(t, "sh", "-c", "dpkg-deb -c $1 | awk '{print $2}' | sort -u", "sh", deb)
	if owners != "root/root" {
		t.Errorf("the deb's files belong to %q", owners)
	}
	for _, need := range []string{"qemu-system-x86", "qemu-utils", "e2fsprogs", "fuse3"} {
		if !strings.Contains(output(t, "dpkg-deb", "-f", deb, "Depends"), need) {
			t.Errorf("the deb does not depend on %s", need)
		}
	}
	copyright, err := os.ReadFile(filepath.Join(root, "deb/usr/share/doc/banger/copyright"))
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"banger", "github.com/hanwen/go-fuse/v2", "modernc.org/sqlite",
		"the Go standard library"} {
		if !strings.Contains(string(copyright), "\n======== "+module) {
			t.Errorf("the copyright file has no licence of %s", module)
		}
	}

	units(t, filepath.Join(root, "deb"))
	completions(t, filepath.Join(root, "deb"))

	// An administrator's configuration stays.
	own := filepath.Join(root, "plain/etc/banger/config.toml")
	must(t, os.WriteFile(own, []byte("cpus = 2\n"), 0o644))
	makes(t, "install", "DESTDIR="+filepath.Join(root, "plain"), "PREFIX=/usr")
	if text := readFile(own); text != "cpus = 2\n" {
		t.Errorf("a second make install left %q in config.toml", text)
	}
}

// mostExposed is the highest exposure level of bangerd.service that is accepted.
const mostExposed = 6.5

// units expects that systemd accepts what is installed for it.
func units(t *testing.T, root string) {
	t.Helper()
	output(t, "systemd-analyze", "verify", "--root="+root, "--man=no", "--recursive-errors=no",
		"bangerd.service", "banger@web.service")
	output(t, "systemd-sysusers", "--root="+root, "banger.conf")
	if groups := readFile(filepath.Join(root, "etc/group")); !strings.Contains(groups, "banger:") {
		t.Errorf("systemd-sysusers makes the groups %q", groups)
	}
	output(t, "systemd-tmpfiles", "--root="+root, "--create", "banger.conf")
	if _, err := os.Stat(filepath.Join(root, "run/banger")); err != nil {
		t.Error(err)
	}
	said := output(t, "systemd-analyze", "security", "--offline=true", "--no-pager",
		filepath.Join(root, "usr/lib/systemd/system/bangerd.service"))
	level := regexp.MustCompile(`exposure level for bangerd\.service: (\S+)`).FindStringSubmatch(said)
	if level == nil {
		t.Fatalf("systemd-analyze security says\n%s", said)
	}
	if n, err := strconv.ParseFloat(level[1], 64); err != nil || n <= 0 || n > mostExposed {
		t.Errorf("the exposure of bangerd.service is %s, at most %v is accepted",
			level[1], mostExposed)
	}
}

// completions expects that bash completes the commands of banger, and that the manual is readable.
func completions(t *testing.T, root string) {
	t.Helper()
	t.Setenv("PATH", filepath.Join(root, "usr/bin")+":"+os.Getenv("PATH"))
	script := filepath.Join(root, "usr/share/bash-completion/completions/banger")
	// __start_banger needs functions of the package bash-completion. What it asks is banger itself.
	output(t, "bash", "-c", "source $1 && declare -F __start_banger", "bash", script)
	if got := output(t, "banger", "__complete", "doc"); !strings.HasPrefix(got, "doctor\t") {
		t.Errorf("completions of doc: %q", got)
	}
	for _, page := range []string{"man1/banger.1", "man5/banger.5", "man8/bangerd.8"} {
		text := output(t, "man", "-l", filepath.Join(root, "usr/share/man", page+".gz"))
		if !strings.Contains(text, "NAME") || !strings.Contains(text, "SEE ALSO") {
			t.Errorf("%s is no manual page:\n%.200s", page, text)
		}
	}
}

// TestVersions expects that a package manager takes a later commit, and a release, for newer.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		output(t, "git", append([]string{"-C", dir, "-c", "user.name=n", "-c", "user.email=e@e.example"},
			args...)...)
	}
	must(t, os.MkdirAll(filepath.Join(dir, "contrib/package"), 0o755))
	for name, text := range map[string]string{
		"CHANGELOG.md":               "# Changes\n\n## 0.1.0\n",
		"contrib/package/version.sh": readFile("../contrib/package/version.sh"),
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	version := func() string {
		t.Helper()
		return output(t, "sh", filepath.Join(dir, "contrib/package/version.sh"))
	}
	all := []string{}
	git("init", "-q")
	git("add", ".")
	for range 11 { // 10 sorts after 9
		git("commit", "-q", "--allow-empty", "-m", "next")
		all = append(all, version())
	}
	git("tag", "v0.1.0")
	all = append(all, version())
	git("commit", "-q", "--allow-empty", "-m", "next")
	all = append(all, version())
	if all[11] != "0.1.0" || !strings.HasPrefix(all[0], "0.1.0~git1.g") ||
		!strings.HasPrefix(all[12], "0.1.0+1.g") {
		t.Errorf("versions %q", all)
	}
	for i := range all[1:] {
		output(t, "dpkg", "--compare-versions", all[i], "lt", all[i+1])
		order := output(t, "rpm", "--eval",
			`%{lua:print(rpm.vercmp("`+all[i]+`", "`+all[i+1]+`"))}`)
		if order != "-1" {
			t.Errorf("rpm compares %s with %s: %s", all[i], all[i+1], order)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), []byte("# Changes\n\n## 0.2.0\n"), 0o644))
	if v := version(); v != all[12]+".dirty" {
		t.Errorf("with a change that is not committed: %q", v)
	}
	must(t, os.RemoveAll(filepath.Join(dir, ".git")))
	if v := version(); v != "0.2.0" {
		t.Errorf("without git: %q", v)
	}
}
