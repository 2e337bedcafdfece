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

// appendToInitrd writes a copy of an initramfs with these programs in addition, in a second archive
// that the kernel unpacks over the first.
func appendToInitrd(t *testing.T, from, to string, programs map[string][]byte) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	all := bytes.NewBuffer(append(b, make([]byte, (512-len(b)%512)%512)...))
	w := cpio.NewWriter(all)
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		h := &cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: int64(len(programs[name]))}
		err := w.WriteHeader(h)
		if err == nil {
			_, err = w.Write(programs[name])
		}
		must(t, err)
	}
	must(t, w.Close())
	must(t, os.WriteFile(to, all.Bytes(), 0o644))
}

// addImageWith copies the daemon's built-in image and adds these programs to its root directory.
// The program named like the image is its init.
func (d *daemon) addImageWith(t *testing.T, name string, memory int64, programs map[string][]byte) {
	t.Helper()
	base := filepath.Join(d.state, "images", "builtin")
	dir := filepath.Join(d.state, "images", name)
	must(t, os.Mkdir(dir, 0o755))
	b, err := os.ReadFile(filepath.Join(base, "image.json"))
	must(t, err)
	var manifest map[string]any
	must(t, json.Unmarshal(b, &manifest))
	kernel, initrd := manifest["kernel"].(string), manifest["initrd"].(string)
	must(t, os.Link(filepath.Join(base, kernel), filepath.Join(dir, kernel)))
	appendToInitrd(t, filepath.Join(base, initrd), filepath.Join(dir, initrd), programs)
	manifest["memory"] = memory
	manifest["cmdline"] = "rdinit=/" + name + " " + manifest["cmdline"].(string)
	if b, err = json.Marshal(manifest); err == nil {
		err = os.WriteFile(filepath.Join(dir, "image.json"), b, 0o644)
	}
	must(t, err)
}

// buildStatic returns a program of this module that needs no libraries.
func buildStatic(t *testing.T, pkg string) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	must(t, buildStaticTo(program, pkg))
	b, err := os.ReadFile(program)
	must(t, err)
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

// terminal holds what a guest has printed since the open. Captures of `console` cannot be parsed:
// QEMU repeats a byte there if the daemon reads too slowly (qemu_chr_write_buffer).
type terminal struct {
	ended chan struct{} // closed when the VM has ended and all is read
	mu    sync.Mutex
	text  []byte // guarded by mu
}

// openTerminal reads the console of a running VM until the test ends, and kills the VM then.
func openTerminal(t *testing.T, d *daemon, vm string) *terminal {
	t.Helper()
	f, err := os.OpenFile(d.path(vm, "console"), os.O_RDWR, 0)
	must(t, err)
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
