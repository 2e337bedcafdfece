package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/cavaliergopher/cpio"
)

// appendToInitrd writes a copy of an initramfs that has these programs besides: a second archive that the kernel unpacks over the first.
func appendToInitrd(t *testing.T, from, to string, programs map[string][]byte) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.NewBuffer(append(b, make([]byte, (512-len(b)%512)%512)...))
	w := cpio.NewWriter(all)
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: int64(len(programs[name]))})
		if err == nil {
			_, err = w.Write(programs[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, all.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// addImageWith gives the daemon, which has the built-in image, another one like it, in whose root directory are these
// programs besides; the one named like the image is its init.
func (d *daemon) addImageWith(t *testing.T, name string, memory int64, programs map[string][]byte) {
	t.Helper()
	base := filepath.Join(d.state, "images", "builtin")
	dir := filepath.Join(d.state, "images", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(base, "image.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest map[string]any
	if err := json.Unmarshal(b, &manifest); err != nil {
		t.Fatal(err)
	}
	kernel, initrd := manifest["kernel"].(string), manifest["initrd"].(string)
	if err := os.Link(filepath.Join(base, kernel), filepath.Join(dir, kernel)); err != nil {
		t.Fatal(err)
	}
	appendToInitrd(t, filepath.Join(base, initrd), filepath.Join(dir, initrd), programs)
	manifest["memory"] = memory
	manifest["cmdline"] = "rdinit=/" + name + " " + manifest["cmdline"].(string)
	if b, err = json.Marshal(manifest); err == nil {
		err = os.WriteFile(filepath.Join(dir, "image.json"), b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// buildStatic gives a program of this module that needs no libraries.
func buildStatic(t *testing.T, pkg string) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := buildStaticTo(program, pkg); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func buildStaticTo(program, pkg string) error {
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// terminal is what a guest has printed since it was opened. The file that `console` gives to a reader will not do to be
// parsed: QEMU writes a byte to it once more when the daemon was not quick enough to take it (qemu_chr_write_buffer).
type terminal struct {
	ended chan struct{} // closed when the VM has ended and all is read
	mu    sync.Mutex
	text  []byte // guarded by mu
}

// openTerminal reads the console of a running VM until the test ends, and kills the VM then.
func openTerminal(t *testing.T, d *daemon, vm string) *terminal {
	t.Helper()
	f, err := os.OpenFile(d.path(vm, "console"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &terminal{ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		defer f.Close()
		for buf := make([]byte, 4096); ; {
			n, err := f.Read(buf)
			if err != nil {
				return // the end of the VM
			}
			c.mu.Lock()
			c.text = append(c.text, buf[:n]...)
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if err := write(d.path(vm, "state"), "kill"); err != nil {
			t.Error(err)
		}
		<-c.ended
	})
	return c
}

func (c *terminal) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(bytes.ReplaceAll(c.text, []byte("\r"), nil))
}
