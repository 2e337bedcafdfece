package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// bareEnv makes the test program serve a bare tree instead of testing. It holds the mount and a
// bareShape as JSON, separated by a colon.
const bareEnv = "BANGER_BARE_TREE"

// bareShape is the shape of a bare tree: Dirs directories like those of VMs, each with Files files
// of Size bytes and Subdirs empty directories.
type bareShape struct{ Dirs, Files, Subdirs, Size int }

// bareTree is a tree of go-fuse's fs package in its own process, which banger is measured against.
type bareTree struct {
	mount string
	cmd   *exec.Cmd
}

// startBare serves a bare tree until stop or the test's end.
func startBare(t *testing.T, shape bareShape) *bareTree {
	t.Helper()
	b := &bareTree{mount: t.TempDir()}
	text, err := json.Marshal(shape)
	must(t, err)
	b.cmd = exec.Command(os.Args[0])
	b.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%s", bareEnv, b.mount, text))
	b.cmd.Stderr = os.Stderr
	must(t, b.cmd.Start())
	t.Cleanup(b.stop)
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(b.mount, "vms")); err == nil {
			return b
		}
		if time.Now().After(end) {
			t.Fatal("the bare tree is not served")
		}
	}
}

func (b *bareTree) stop() {
	if b.cmd.ProcessState == nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait() // killed
		_ = syscall.Unmount(b.mount, syscall.MNT_DETACH)
	}
}

// serveBare is the main function of the process that serves the bare tree.
func serveBare(what string) error {
	mount, text, _ := strings.Cut(what, ":")
	root := new(bareRoot)
	if err := json.Unmarshal([]byte(text), &root.shape); err != nil {
		return err
	}
	root.content = bytes.Repeat([]byte("x"), root.shape.Size)
	second := time.Second
	privileged := os.Getuid() == 0
	server, err := fs.Mount(mount, root, &fs.Options{
		EntryTimeout: &second, AttrTimeout: &second,
		MountOptions: fuse.MountOptions{DirectMountStrict: privileged, AllowOther: privileged,
			DisableXAttrs: true, Options: []string{"default_permissions"}},
	})
	if err != nil {
		return err
	}
	server.Wait()
	return nil
}

type bareRoot struct {
	fs.Inode
	shape   bareShape
	content []byte
}

func (r *bareRoot) OnAdd(ctx context.Context) {
	newDir := func() *fs.Inode {
		return r.NewPersistentInode(ctx, &fs.Inode{}, fs.StableAttr{Mode: syscall.S_IFDIR})
	}
	vms := newDir()
	for i := range r.shape.Dirs {
		dir := newDir()
		for f := range r.shape.Files {
			file := r.NewPersistentInode(ctx, &bareFile{content: r.content},
				fs.StableAttr{Mode: syscall.S_IFREG})
			dir.AddChild(fmt.Sprintf("f%d", f), file, false)
		}
		for n := range r.shape.Subdirs {
			dir.AddChild(fmt.Sprintf("d%d", n), newDir(), false)
		}
		vms.AddChild(fmt.Sprintf("v%d", i), dir, false)
	}
	r.AddChild("vms", vms, false)
}

type bareFile struct {
	fs.Inode
	content []byte
}

func (f *bareFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o444, uint64(len(f.content))
	return 0
}

func (f *bareFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

func (f *bareFile) Read(_ context.Context, _ fs.FileHandle, _ []byte, off int64) (
	fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(f.content[min(off, int64(len(f.content))):]), 0
}
