package integration

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// execMiB is small by default: TestExecReal passes a few MB a second through an emulated guest.
var execMiB = flag.Int64("exec.mib", 0,
	"MiB that TestExecReal passes through a guest (default: 32, 256 with -long)")

// TestExecReal sends many bytes to a guest's command, which returns all of them and their digest.
func TestExecReal(t *testing.T) {
	t.Parallel()
	needRealVMs(t)
	mib := int64(32)
	if *long {
		mib = 256
	}
	size := cmp.Or(*execMiB, mib) << 20
	d := realDaemon(t)
	must(t, write(d.path("web", "state"), "start"))
	must(t, healthy(d, "web"))
	sent, back := sha256.New(), sha256.New()
	cmd := d.client("exec", "-i", "web", "--", "/bin/sh", "-c", "tee /proc/self/fd/2 | sha256sum")
	cmd.Stdin = io.TeeReader(noise(1, size), sent)
	cmd.Stderr = back
	began := time.Now()
	out, err := cmd.Output()
	must(t, err)
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
