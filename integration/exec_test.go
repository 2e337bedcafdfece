package integration

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// client gives the command line of banger against this daemon.
func (d *daemon) client(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(bin, "banger"), append([]string{"--mount", d.mount}, args...)...)
}

// inGuest runs a shell's line in a VM and gives what it prints.
func (d *daemon) inGuest(t *testing.T, vm, line string) string {
	t.Helper()
	out, err := d.client("exec", vm, "--", "/bin/sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// noise gives n bytes of any value, the same for the same seed.
func noise(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// execMiB is small by default: an emulated guest passes a few MB a second through all that TestExecReal asks of it.
var execMiB = flag.Int64("exec.mib", 0, "of TestExecReal: what it passes through a guest, in MiB; 32, or 256 with -long, by default")

// TestExecReal passes many bytes through a guest's command, which sends all of it back and counts its digest.
func TestExecReal(t *testing.T) {
	t.Parallel()
	if ok, cure := realVMs(); !ok {
		t.Skip(cure)
	}
	mib := int64(32)
	if *long {
		mib = 256
	}
	size := cmp.Or(*execMiB, mib) << 20
	d := realDaemon(t)
	if err := write(d.path("web", "state"), "start"); err != nil {
		t.Fatal(err)
	}
	if _, err := read(d.path("web", "wait", "healthy")); err != nil {
		t.Fatal(err)
	}
	sent, back := sha256.New(), sha256.New()
	cmd := d.client("exec", "-i", "web", "--", "/bin/sh", "-c", "tee /proc/self/fd/2 | sha256sum")
	cmd.Stdin = io.TeeReader(noise(1, size), sent)
	cmd.Stderr = back
	began := time.Now()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(sent.Sum(nil))
	if got, _, _ := strings.Cut(string(out), " "); got != want {
		t.Errorf("the guest counts %s, not %s", got, want)
	}
	if got := hex.EncodeToString(back.Sum(nil)); got != want {
		t.Errorf("what came back is %s, not %s", got, want)
	}
	t.Logf("%d MiB in and out in %v", size>>20, time.Since(began).Round(100*time.Millisecond))

	if _, err := exec.LookPath("dropbear"); err != nil {
		t.Skip("apt install dropbear-bin")
	}
	startSSHD(t, d, "web")
	ssh := d.ssh(t, "web")
	out, err = exec.Command(ssh[0], append(ssh[1:], "echo through ssh; exit 7")...).Output()
	if code := exitStatus(err); code != 7 || string(out) != "through ssh\n" {
		t.Errorf("ssh through banger proxy ended with %d (%v) and printed %q", code, err, out)
	}
}

// exitStatus is that of a command that Run or Output gave err for, -1 for none.
func exitStatus(err error) int {
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	if err == nil {
		return 0
	}
	return -1
}

// ssh gives a command line that logs in to a VM in which startSSHD has run, as a user does who has put `banger ssh-config` into
// ssh's configuration. Arguments, the command last, may follow; scp takes the same but for the first and the last word.
func (d *daemon) ssh(t *testing.T, vm string) []string {
	t.Helper()
	config, err := d.client("ssh-config").Output()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(d.mount), "ssh_config")
	text := strings.ReplaceAll(string(config), "ProxyCommand banger", "ProxyCommand "+filepath.Join(bin, "banger"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"ssh", "-q", "-F", path, "-i", d.loginKey(), "-o", "BatchMode=yes", vm + ".vm"}
}

// loginKey is the private key that startSSHD lets in.
func (d *daemon) loginKey() string { return filepath.Join(filepath.Dir(d.mount), "login_key") }

// startSSHD has an ssh server listen on port 22 of a guest of the built-in image that is healthy: Debian's dropbear, with scp beside it and the libraries of
// both, sent through the guest's agent. It serves the VM's host key and lets loginKey in.
func startSSHD(t *testing.T, d *daemon, vm string) {
	t.Helper()
	if _, err := os.Stat(d.loginKey()); err != nil {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", d.loginKey()).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	public, err := os.ReadFile(d.loginKey() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if err := write(d.path(vm, "authorized_keys"), string(public)); err != nil {
		t.Fatal(err)
	}
	id, err := read(d.path(vm, "id"))
	if err != nil {
		t.Fatal(err)
	}
	hostKey := filepath.Join(t.TempDir(), "host_key")
	from := filepath.Join(d.state, "vms", strings.TrimSpace(id), "ssh_host_ed25519_key")
	if out, err := exec.Command("dropbearconvert", "openssh", "dropbear", from, hostKey).CombinedOutput(); err != nil {
		t.Fatalf("dropbearconvert: %v\n%s", err, out)
	}
	files := map[string]string{"etc/dropbear_key": hostKey}
	for _, name := range []string{"dropbear", "scp"} {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("%v: apt install dropbear-bin openssh-client", err)
		}
		files["bin/"+name] = program
		out, err := exec.Command("ldd", program).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				files[word[1:]] = word
			}
		}
	}
	cmd := d.client("exec", "-i", vm, "--", "tar", "x", "-C", "/")
	cmd.Stdin = bytes.NewReader(tarOf(t, files))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	d.inGuest(t, vm, "dropbear -r /etc/dropbear_key -p 22 -P /run/dropbear.pid")
	if _, err := read(d.path(vm, "wait", "tcp", "22")); err != nil {
		t.Fatal(err)
	}
}

// tarOf packs files of this machine, all of them programs, under other names.
func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		err = w.WriteHeader(&tar.Header{Name: name, Mode: 0o700, Size: int64(len(text))})
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
