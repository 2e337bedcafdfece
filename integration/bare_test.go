package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// bareEnv makes the test program serve a bare tree instead of testing: MOUNT:DIRECTORIES:BYTES.
const bareEnv = "BANGER_BARE_TREE"

// bareFiles is how many files a directory of the bare tree has, as a VM's has.
const bareFiles = 40

// bareTree is a tree of go-fuse's fs package in its own process, which banger is measured against.
type bareTree struct {
	mount string
	cmd   *exec.Cmd
}

// startBare serves a tree of dirs directories, whose files have size bytes, until stop or the
// test's end.
func startBare(t *testing.T, dirs, size int) *bareTree {
	t.Helper()
	b := &bareTree{mount: t.TempDir()}
	b.cmd = exec.Command(os.Args[0])
	b.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d:%d", bareEnv, b.mount, dirs, size))
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
	parts := strings.Split(what, ":")
	dirs, err := strconv.Atoi(parts[1])
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(parts[2])
	if err != nil {
		return err
	}
	second := time.Second
	root := &bareRoot{dirs: dirs, content: bytes.Repeat([]byte("x"), size)}
	privileged := os.Getuid() == 0
	server, err := fs.Mount(parts[0], root, &fs.Options{
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
	dirs    int
	content []byte
}

func (r *bareRoot) OnAdd(ctx context.Context) {
	newDir := func() *fs.Inode {
		return r.NewPersistentInode(ctx, &fs.Inode{}, fs.StableAttr{Mode: syscall.S_IFDIR})
	}
	vms := newDir()
	for i := range r.dirs {
		dir := newDir()
		for f := range bareFiles {
			file := r.NewPersistentInode(ctx, &bareFile{content: r.content},
				fs.StableAttr{Mode: syscall.S_IFREG})
			dir.AddChild(fmt.Sprintf("f%d", f), file, false)
		}
		dir.AddChild("wait", newDir(), false)
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
