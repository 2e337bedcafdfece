package host_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

func TestHoleWriter(t *testing.T) {
	const block = 4096
	random := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 40*block+3)
	for range 12 {
		want[random.IntN(len(want))] = 1
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := &host.HoleWriter{File: out}
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 1+random.IntN(5*block))
		if got, err := w.Write(rest[:n]); got != n || err != nil {
			t.Fatalf("%d of %d written, %v", got, n, err)
		}
		rest = rest[n:]
	}
	if err := out.Truncate(int64(len(want))); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file differs, %v", err)
	}
	if n, err := w.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
		t.Errorf("%d zeros written, %v", n, err)
	}
	if fi, err := out.Stat(); err != nil || fi.Size() != int64(len(want)) {
		t.Errorf("zeros made %d bytes, %v", fi.Size(), err)
	}
}

// TestCopyToAnotherFileSystem copies a disk with a hole, as an image has one.
func TestCopyToAnotherFileSystem(t *testing.T) {
	there, err := os.MkdirTemp("/dev/shm", "banger")
	if err != nil {
		t.Skip("mount a tmpfs on /dev/shm")
	}
	defer os.RemoveAll(there)
	from, to := filepath.Join(t.TempDir(), "disk"), filepath.Join(there, "disk")
	const size = 64<<20 + 5
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("data"), 32<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := host.LinkOrCopy(from, to); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy has %d bytes and differs, %v", len(got), err)
	}
	var here, copied unix.Stat_t
	if err := unix.Stat(from, &here); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(to, &copied); err != nil || copied.Blocks > 1<<20/512 {
		t.Errorf("the copy has %d blocks, %v", copied.Blocks, err)
	}
	if here.Dev == copied.Dev {
		t.Skip("mount another file system on /dev/shm")
	}
}
