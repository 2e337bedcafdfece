package dns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestWriteHosts(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hosts")
	link := filepath.Join(dir, "link")
	const theirs = "127.0.0.1 localhost\n# banger\n\n192.0.2.1 nas" // no end of line
	if err := os.WriteFile(path, []byte(theirs), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("hosts", link); err != nil {
		t.Fatal(err)
	}
	const a = "# banger banger0: begin, kept by bangerd\n172.30.0.2 web.vm\n# banger banger0: end\n"
	const b = "# banger other: begin, kept by bangerd\n10.1.0.2 db.vm\n# banger other: end\n"
	for i, step := range []struct{ owner, lines, want string }{
		{"banger0", "", theirs},
		{"banger0", "172.30.0.2 web.vm\n", theirs + "\n" + a},
		{"other", "10.1.0.2 db.vm\n", theirs + "\n" + a + b},
		{"banger0", "172.30.0.2 web.vm\n", theirs + "\n" + a + b},
		{"banger0", "172.30.0.3 web.vm\n", theirs + "\n" + strings.Replace(a, ".2", ".3", 1) + b},
		{"banger0", "", theirs + "\n" + b},
		{"other", "", theirs + "\n"},
	} {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		old, _ := os.ReadFile(path)
		if err := WriteHosts(link, step.owner, []byte(step.lines)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if d := cmp.Diff(step.want, string(got)); d != "" || err != nil {
			t.Fatalf("step %d: %v %s", i, err, d)
		}
		after, err := os.Stat(path)
		if err != nil || after.Mode() != before.Mode() || os.SameFile(before, after) != (string(old) == step.want) {
			t.Errorf("step %d: %v, written %v", i, after.Mode(), !os.SameFile(before, after))
		}
	}
	if l, err := os.Readlink(link); l != "hosts" {
		t.Error("the link is gone:", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".banger*")); left != nil {
		t.Error("left:", left)
	}
	// Somebody took the end away: nothing of theirs goes.
	if err := os.WriteFile(path, []byte("# banger banger0: begin, kept by bangerd\n172.30.0.2 web.vm\n192.0.2.1 nas\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteHosts(path, "banger0", nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "172.30.0.2 web.vm\n192.0.2.1 nas\n" {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{filepath.Join(dir, "none"), dir, "/dev/null"} {
		if err := WriteHosts(bad, "banger0", []byte("x\n")); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestOverwrite keeps a file that cannot be replaced, as /etc/hosts of a container: one that something is mounted on.
func TestOverwrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts: run the tests as root")
	}
	dir := t.TempDir()
	path, under := filepath.Join(dir, "hosts"), filepath.Join(dir, "under")
	for _, p := range []string{path, under} {
		if err := os.WriteFile(p, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(under, path, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot mount here, as in a container without the right to: %v", err)
	}
	defer func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	for _, lines := range []string{"172.30.0.2 web.vm\n172.30.0.3 db.vm\n", "172.30.0.2 web.vm\n", ""} {
		if err := WriteHosts(path, "banger0", []byte(lines)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(under)
		if want := string(withBlock([]byte("127.0.0.1 localhost\n"), "banger0", []byte(lines))); string(got) != want || err != nil {
			t.Errorf("%q, not %q: %v", got, want, err)
		}
	}
}

func FuzzWithBlock(f *testing.F) {
	f.Add("127.0.0.1 localhost\n# banger b: begin, kept by bangerd\nx\n# banger b: end\ny", "z\n")
	f.Add("# banger b: end\n# banger b: begin, kept by bangerd\n", "")
	f.Fuzz(func(t *testing.T, old, lines string) {
		if strings.Contains(old, "# banger") || strings.Contains(lines, "# banger") {
			_ = withBlock([]byte(old), "b", []byte(lines)) // others' blocks and halves of ours: no panic
			return
		}
		if old != "" && !strings.HasSuffix(old, "\n") {
			old += "\n"
		}
		if lines != "" && !strings.HasSuffix(lines, "\n") {
			lines += "\n"
		}
		with := withBlock([]byte(old), "b", []byte(lines))
		if got := withBlock(with, "b", nil); string(got) != old {
			t.Fatalf("%q became %q", old, got)
		}
	})
}

func TestUsesResolve(t *testing.T) {
	for text, want := range map[string]bool{
		"": false,
		"passwd: files\nhosts:          files dns\n":                                           false,
		"hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n":                   true,
		"#hosts: resolve\nhosts: files dns # resolved would be nicer\nnetworks: resolve files": false,
	} {
		if usesResolve(text) != want {
			t.Errorf("%q", text)
		}
	}
}

// fakeResolved is org.freedesktop.resolve1 on a bus of the test's own.
type fakeResolved struct {
	mu    sync.Mutex
	calls []string // guarded by mu, as is fail
	fail  string   // a method that refuses
}

func (f *fakeResolved) note(method, text string) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == method {
		return dbus.NewError("org.freedesktop.resolve1.LinkBusy", []any{"Link lo is managed."})
	}
	f.calls = append(f.calls, method+" "+text)
	return nil
}

func (f *fakeResolved) SetLinkDNS(link int32, a []struct {
	Family  int32
	Address []byte
}) *dbus.Error {
	text := fmt.Sprint(link)
	for _, a := range a {
		addr, _ := netip.AddrFromSlice(a.Address)
		text += fmt.Sprintf(" %d/%s", a.Family, addr)
	}
	return f.note("SetLinkDNS", text)
}

func (f *fakeResolved) SetLinkDomains(link int32, d []struct {
	Name      string
	RouteOnly bool
}) *dbus.Error {
	return f.note("SetLinkDomains", fmt.Sprint(link, d))
}

func (f *fakeResolved) SetLinkDefaultRoute(link int32, on bool) *dbus.Error {
	return f.note("SetLinkDefaultRoute", fmt.Sprint(link, on))
}

func (f *fakeResolved) RevertLink(link int32) *dbus.Error {
	return f.note("RevertLink", fmt.Sprint(link))
}

// said gives what was called since it was asked last.
func (f *fakeResolved) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := strings.Join(f.calls, "\n")
	f.calls = nil
	return text
}

// systemBus starts a bus and makes it the system's for this test.
func systemBus(t *testing.T) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("apt install dbus-daemon")
	}
	dir := t.TempDir()
	conf := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path=` + filepath.Join(dir, "bus") + `</listen>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/></policy></busconfig>`
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--nofork", "--print-address", "--config-file="+filepath.Join(dir, "conf"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))
}

// run puts the fake on the bus until the function it gives is called.
func (f *fakeResolved) run(t *testing.T) (stop func()) {
	t.Helper()
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Export(f, resolvedPath, resolvedName+".Manager"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(resolvedName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return func() { _ = conn.Close() }
}

func TestResolved(t *testing.T) {
	systemBus(t)
	ctx := context.Background()
	var r resolved
	register := func(link int) error {
		return r.register(ctx, link, []netip.Addr{netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd12::1")}, []string{"vm.", "30.172.in-addr.arpa."})
	}
	if err := register(7); !errors.Is(err, errNoResolved) || r.told() {
		t.Fatal("nobody is there:", err)
	}
	var f fakeResolved
	stop := f.run(t)
	told := func(link int) string {
		return fmt.Sprintf("SetLinkDNS %d 2/172.30.0.1 10/fd12::1\nSetLinkDomains %[1]d [{vm. true} {30.172.in-addr.arpa. true}]\nSetLinkDefaultRoute %[1]d false", link)
	}
	expect := func(what string, err error, want string) {
		t.Helper()
		if said := f.said(); err != nil || said != want || r.told() != (want == "" || !strings.HasPrefix(want, "Revert")) {
			t.Errorf("%s: %v: %s", what, err, said)
		}
	}
	expect("the first time", register(7), told(7))
	expect("again", register(7), "")
	expect("the bridge was made anew", register(8), told(8))
	stop()
	if err := register(8); !errors.Is(err, errNoResolved) || r.told() {
		t.Error("it has ended:", err)
	}
	stop = f.run(t)
	expect("it was restarted", register(8), told(8))
	expect("the end", r.unregister(ctx), "RevertLink 8")
	expect("again", register(8), told(8))
	f.mu.Lock()
	f.fail = "SetLinkDomains"
	f.mu.Unlock()
	if err := register(9); err == nil || !strings.Contains(err.Error(), "SetLinkDomains") || r.told() {
		t.Error("refused:", err)
	}
	stop()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
	if err := register(8); !errors.Is(err, errNoResolved) {
		t.Error("there is no bus:", err)
	}
	// A bus that accepts and says nothing holds nobody for longer than busTime.
	path := filepath.Join(t.TempDir(), "silent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := r.register(short, 8, nil, nil); err == nil || time.Since(began) > busTime {
		t.Error("it says nothing:", err, time.Since(began))
	}
}

// TestHost follows what the host does, with the names of VMs in a hosts file as well.
func TestHost(t *testing.T) {
	systemBus(t)
	var f fakeResolved
	defer f.run(t)()
	s := newServer(t, "nameserver 127.77.0.9\n", 0)
	s.forward.conf.port = s.own[0].Port()
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var lines atomic.Value
	lines.Store("")
	var resolves atomic.Bool
	o := HostOptions{Server: s, Bridge: "lo", Lines: func() []byte { return []byte(lines.Load().(string)) }, Resolves: resolves.Store, Log: quiet()}
	h := Follow(o)
	index, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	var said string
	waitFor(t, "systemd-resolved knows", func() bool {
		if now := f.said(); now != "" {
			said += now + "\n"
		}
		return strings.Contains(said, "SetLinkDefaultRoute")
	})
	if want := fmt.Sprintf("SetLinkDNS %d 2/127.77.0.1\nSetLinkDomains %[1]d [{vm. true} {0.77.127.in-addr.arpa. true}]\n", index.Index); !strings.HasPrefix(said, want) {
		t.Error(said)
	}
	if resolves.Load() {
		t.Error("no resolver of the host's knows")
	}
	if err := os.WriteFile(s.o.ResolvConf, []byte("nameserver 127.77.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the host finds names", resolves.Load)
	if err := os.WriteFile(s.o.ResolvConf, []byte("nameserver 127.77.0.9\nsearch x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it does not any more", func() bool { return !resolves.Load() })
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if said := f.said(); said != fmt.Sprint("RevertLink ", index.Index) {
		t.Error(said)
	}

	o.HostsFile, o.Server = hosts, nil
	h = Follow(o)
	waitFor(t, "the host finds names through its file", resolves.Load)
	lines.Store("172.30.0.2 web.vm\n")
	h.Changed()
	has := func() string { b, _ := os.ReadFile(hosts); return string(b) }
	waitFor(t, "a name is there", func() bool { return strings.Contains(has(), "\n172.30.0.2 web.vm\n") })
	lines.Store("")
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if has() != "127.0.0.1 localhost\n" {
		t.Errorf("%q", has())
	}
}
