package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// prepareSources makes what images are built from.
func (k *campaign) prepareSources() {
	writeLayout(k.t, filepath.Join(k.dir, "oci.tar"), webImage(k.t, "crash"))
	root := filepath.Join(k.dir, "root")
	must(k.t, os.MkdirAll(filepath.Join(root, "sbin"), 0o755))
	must(k.t, os.WriteFile(filepath.Join(root, "sbin", "init"), []byte("none"), 0o755))
	tar := filepath.Join(k.dir, "rootfs.tar")
	if out, err := exec.Command("tar", "-C", root, "-cf", tar, ".").CombinedOutput(); err != nil {
		k.t.Fatalf("%v: %s", err, out)
	}
}

// imageLife is what was acknowledged of one image: its status without the reason or percentage, ""
// if there is none. The command under way may lead to next.
type imageLife struct {
	*campaign
	name, state, next string
	built             int
}

func (i *imageLife) path(file string) string {
	return filepath.Join(i.d.mount, "images", i.name, file)
}

// step does one random command.
func (i *imageLife) step(r *rand.Rand) error {
	var do func() error
	switch {
	case i.state == "":
		i.next = "empty"
		do = func() error { return os.Mkdir(i.path(""), 0o755) }
	case i.state == "building" && r.IntN(4) > 0:
		i.next = "ready"
		do = func() error {
			_, err := read(i.path("wait/ready"))
			if err == nil {
				i.built++
			}
			return err
		}
	case i.state == "building" || r.IntN(3) == 0:
		i.next = ""
		do = func() error { return os.Remove(i.path("")) }
	default:
		i.next = "building"
		kind := []string{"oci", "rootfs"}[r.IntN(2)]
		do = func() error {
			return write(i.path("source"), kind+":"+filepath.Join(i.dir, kind+".tar"))
		}
	}
	err := do()
	if errors.Is(err, syscall.EBUSY) {
		err = nil // its files are being put in place
	} else if err == nil {
		i.state = i.next
	}
	if err != nil {
		why, _ := os.ReadFile(i.path("error"))
		return fmt.Errorf("image %s, which is %s and becomes %s: %w: %s",
			i.name, i.state, i.next, err, why)
	}
	return nil
}

// settle compares an image with what was acknowledged. A ready one is whole.
func (i *imageLife) settle(there bool) {
	i.t.Helper()
	state, text := "", ""
	if there {
		var err error
		if text, err = read(i.path("status")); err != nil {
			i.t.Errorf("round %d: %v", i.round, err)
		}
		state, _, _ = strings.Cut(text, " ")
	}
	built := i.state == "building" || i.next == "building"
	switch {
	case state == i.state || state == i.next:
	case built && state == "ready":
	case built && strings.HasPrefix(text, "failed the daemon ended"):
	default:
		i.t.Errorf("round %d: image %s is %q, acknowledged was %q, under way %q",
			i.round, i.name, text, i.state, i.next)
	}
	if state == "building" {
		i.t.Errorf("round %d: image %s is %q, and its daemon has ended", i.round, i.name, text)
	}
	i.state, i.next = state, state
	if state == "ready" {
		disk := filepath.Join(i.d.state, "images", i.name, "root.img")
		if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
			i.t.Errorf("round %d: %s is ready and damaged: %v\n%s", i.round, i.name, err, out)
		}
	}
}
