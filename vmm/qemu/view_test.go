package qemu

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

// TestViewIsRenewed replaces a file of the loader, as ldconfig(8) does.
func TestViewIsRenewed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root has namespaces for QEMU: run the suite as root")
	}
	before := loadFiles
	t.Cleanup(func() { loadFiles = before })
	dir := t.TempDir()
	cache := filepath.Join(dir, "cache")
	loadFiles = []string{cache, filepath.Join(dir, "none")}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(cache+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(cache+".new", cache); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	v, err := newView("/usr/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.ns.Close() })
	for _, text := range []string{"first", "second"} {
		write(text)
		err := host.OnOwnThread(func() error {
			if err := v.enter(false, nil); err != nil {
				return err
			}
			got, err := os.ReadFile(cache)
			if string(got) != text {
				t.Errorf("%q: %q, %v", text, got, err)
			}
			if _, err := os.Stat("/etc/passwd"); err == nil {
				t.Error("the view has /etc/passwd")
			}
			if err := os.WriteFile("/usr/banger-was-here", nil, 0o600); err == nil {
				t.Error("the view may be changed")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestWithoutNamespaces looks for what is left where root may not make namespaces, as in some
// containers.
func TestWithoutNamespaces(t *testing.T) {
	const variable = "BANGER_TEST_CONFINED"
	if program := os.Getenv(variable); program != "" { // in the process below
		c, machines, err := confine(slog.Default(), program, tcg)
		t.Logf("view %v; %s; %s; machines %v, %v", c.view, c, c.missing, machines != "", err)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root has namespaces for QEMU: run the suite as root")
	}
	abi, err := host.LandlockABI()
	if err != nil {
		t.Skip(err)
	}
	b := newBench(t)
	cmd := exec.Command("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin",
		os.Args[0], "-test.run", "^TestWithoutNamespaces$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"="+b.program)
	out, err := cmd.CombinedOutput()
	want := fmt.Sprintf("view <nil>; seccomp, Landlock %d; cannot make a view of the file system "+
		"for QEMU: unshare: operation not permitted; machines true, <nil>", abi)
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v: no %q in %s", err, want, out)
	}
}

func TestProgramDir(t *testing.T) {
	for program, want := range map[string]string{
		"/usr/bin/qemu": "", "/usr/local/bin/qemu": "", "/nix/store/x-qemu/bin/qemu": "",
		"/opt/qemu/bin/qemu": "/opt/qemu", "/opt/qemu": "/opt", "/srv/vm/qemu": "/srv/vm",
	} {
		if got := programDir(program); got != want {
			t.Errorf("%s: %q, want %q", program, got, want)
		}
	}
}

// TestForwardConfined publishes and withdraws a port of a running VM with user networking. Its QEMU
// has lost its view of the host by then.
func TestForwardConfined(t *testing.T) {
	b := newBench(t)
	if os.Getuid() == 0 {
		b.runAsOther(t)
	}
	b.spec.NIC = vmm.NIC{Mode: vmm.NetUser, MAC: "02:00:00:00:00:07"}
	m := b.start(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()
	ctx := within(t, 30*time.Second)
	if err := m.Forward(ctx, []vmm.Publication{{Protocol: "tcp", Host: port, Guest: 80}}); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", port.String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := m.Forward(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", port.String()); err == nil {
		c.Close()
		t.Error("the port is still published")
	}
}
