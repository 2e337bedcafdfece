// Package faultfs is a file system for tests that stands between a program and a directory. It
// counts each change, can refuse changes with an error of a disk, and can record them with every
// sync. From a record it makes the directories that a power cut could have left.
//
// A [Layer] passes all requests on to the directory below. Nothing else changes that directory
// while the layer is mounted. Its kernel caches no write: a request arrives for every write(2).
// The process that mounts a layer should not use files below it: go-fuse documents the deadlock.
package faultfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"banger/internal/host"
)

// Fault says which changes fail.
type Fault struct {
	At    int           // the first one that fails, counted from 0 since Arm
	Errno syscall.Errno // of each
	Once  bool          // only that one fails; otherwise all until Lift
}

// Layer is a mounted layer. Its methods may be called from many goroutines.
type Layer struct {
	fuse.RawFileSystem
	server *fuse.Server

	mu     sync.Mutex // held over each change, so that the record has the order of the disk
	nodes  map[uint64]ID
	ids    map[uint64]ID // by number of the inode below
	tree   *Tree
	record *Record // nil while nothing is recorded

	armed  bool
	fault  Fault
	points []string // the changes since Arm
}

// Mount mounts a layer over the directory below at dir. Both exist. The caller unmounts it. Only
// root can.
func Mount(below, dir string) (*Layer, error) {
	root, err := fs.NewLoopbackRoot(below)
	if err != nil {
		return nil, err
	}
	l := &Layer{RawFileSystem: fs.NewNodeFS(root, &fs.Options{}), nodes: make(map[uint64]ID)}
	if l.tree, l.ids, err = scan(below); err != nil {
		return nil, err
	}
	l.nodes[fuse.FUSE_ROOT_ID] = Root
	// For CloseFUSEOnExec. go-fuse also opens a file in the mount: a child of a fork would close it
	// before exec(2), where the process that has to answer may be stopped.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l.server, err = fuse.NewServer(l, dir, &fuse.MountOptions{
		AllowOther: true, Options: []string{"default_permissions"}, DirectMountStrict: true,
		DirectMountFlags: syscall.MS_NOSUID | syscall.MS_NODEV, Name: "faultfs", FsName: "faultfs",
		DisableReadDirPlus: true, MaxWrite: 1 << 20,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH, // the kernel would write past the layer
	})
	host.CloseFUSEOnExec()
	if err != nil {
		return nil, fmt.Errorf("cannot mount a layer at %s: %w", dir, err)
	}
	go l.server.Serve()
	return l, l.server.WaitMount()
}

// Unmount ends the layer. It fails while a file below it is open.
func (l *Layer) Unmount() error { return l.server.Unmount() }

// Arm counts changes anew and lets those of f fail. An At below 0 only counts.
func (l *Layer) Arm(f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed, l.fault, l.points = true, f, nil
}

// Lift ends the fault and the count. It returns the changes that were counted, such as
// `write banger.db-wal`.
func (l *Layer) Lift() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = false
	return l.points
}

// failing counts one change and returns the error that it gets, if any.
func (l *Layer) failing(what string) fuse.Status {
	if !l.armed {
		return fuse.OK
	}
	n := len(l.points)
	l.points = append(l.points, what)
	if at := l.fault.At; at >= 0 && (n == at || n > at && !l.fault.Once) {
		return fuse.Status(l.fault.Errno)
	}
	return fuse.OK
}

// change counts, makes and records one change.
func (l *Layer) change(op Op, make func() fuse.Status, id func() ID) fuse.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	what := op.Kind.String() + " " + l.tree.path(&op)
	if code := l.failing(what); !code.Ok() {
		return code
	}
	if code := make(); !code.Ok() {
		return code
	}
	if id != nil {
		op.ID = id()
	}
	if op.Kind != Sync {
		l.tree.apply(&op, whole)
	}
	if l.record != nil {
		l.record.ops = append(l.record.ops, op)
	}
	return fuse.OK
}

// known notes a node that the kernel has looked up.
func (l *Layer) known(e *fuse.EntryOut) ID {
	id, ok := l.ids[e.Ino]
	if !ok {
		id = l.tree.next()
		l.ids[e.Ino] = id
	}
	l.nodes[e.NodeId] = id
	return id
}

// made notes a node that is new. The number of its inode may be that of a removed one.
func (l *Layer) made(e *fuse.EntryOut) func() ID {
	return func() ID {
		delete(l.ids, e.Ino)
		return l.known(e)
	}
}

func (l *Layer) id(node uint64) ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[node]
}

// Lookup implements fuse.RawFileSystem.
func (l *Layer) Lookup(stop <-chan struct{}, in *fuse.InHeader, name string,
	out *fuse.EntryOut) fuse.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	code := l.RawFileSystem.Lookup(stop, in, name, out)
	if code.Ok() && out.NodeId != 0 {
		l.known(out)
	}
	return code
}

// Create implements fuse.RawFileSystem.
func (l *Layer) Create(stop <-chan struct{}, in *fuse.CreateIn, name string,
	out *fuse.CreateOut) fuse.Status {
	op := Op{Kind: Create, Dir: l.id(in.NodeId), Name: name, Mode: in.Mode & 0o7777,
		UID: in.Uid, GID: in.Gid}
	return l.change(op, func() fuse.Status {
		return l.RawFileSystem.Create(stop, in, name, out)
	}, l.made(&out.EntryOut))
}

// Mknod implements fuse.RawFileSystem.
func (l *Layer) Mknod(stop <-chan struct{}, in *fuse.MknodIn, name string,
	out *fuse.EntryOut) fuse.Status {
	op := Op{Kind: Mknod, Dir: l.id(in.NodeId), Name: name, Mode: in.Mode, UID: in.Uid, GID: in.Gid}
	return l.change(op, func() fuse.Status {
		return l.RawFileSystem.Mknod(stop, in, name, out)
	}, l.made(out))
}

// Mkdir implements fuse.RawFileSystem.
func (l *Layer) Mkdir(stop <-chan struct{}, in *fuse.MkdirIn, name string,
	out *fuse.EntryOut) fuse.Status {
	op := Op{Kind: Mkdir, Dir: l.id(in.NodeId), Name: name, Mode: in.Mode & 0o7777,
		UID: in.Uid, GID: in.Gid}
	return l.change(op, func() fuse.Status {
		return l.RawFileSystem.Mkdir(stop, in, name, out)
	}, l.made(out))
}

// Symlink implements fuse.RawFileSystem.
func (l *Layer) Symlink(stop <-chan struct{}, in *fuse.InHeader, target, name string,
	out *fuse.EntryOut) fuse.Status {
	op := Op{Kind: Symlink, Dir: l.id(in.NodeId), Name: name, Data: []byte(target),
		UID: in.Uid, GID: in.Gid}
	return l.change(op, func() fuse.Status {
		return l.RawFileSystem.Symlink(stop, in, target, name, out)
	}, l.made(out))
}

// Link implements fuse.RawFileSystem.
func (l *Layer) Link(stop <-chan struct{}, in *fuse.LinkIn, name string,
	out *fuse.EntryOut) fuse.Status {
	op := Op{Kind: Link, Dir: l.id(in.NodeId), Name: name}
	return l.change(op, func() fuse.Status {
		return l.RawFileSystem.Link(stop, in, name, out)
	}, func() ID { return l.known(out) })
}

// Unlink implements fuse.RawFileSystem.
func (l *Layer) Unlink(stop <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return l.change(Op{Kind: Unlink, Dir: l.id(in.NodeId), Name: name}, func() fuse.Status {
		return l.RawFileSystem.Unlink(stop, in, name)
	}, nil)
}

// Rmdir implements fuse.RawFileSystem.
func (l *Layer) Rmdir(stop <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return l.change(Op{Kind: Rmdir, Dir: l.id(in.NodeId), Name: name}, func() fuse.Status {
		return l.RawFileSystem.Rmdir(stop, in, name)
	}, nil)
}

// Rename implements fuse.RawFileSystem.
func (l *Layer) Rename(stop <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	op := Op{Kind: Rename, Dir: l.id(in.NodeId), Name: from, Dir2: l.id(in.Newdir), Name2: to,
		Exchange: in.Flags&renameExchange != 0}
	return l.change(op, func() fuse.Status {
		return l.RawFileSystem.Rename(stop, in, from, to)
	}, nil)
}

const renameExchange = 2 // RENAME_EXCHANGE of renameat2(2)

// SetAttr implements fuse.RawFileSystem. Times are not kept: nothing depends on them.
func (l *Layer) SetAttr(stop <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	op := Op{Kind: Attr, ID: l.id(in.NodeId), Valid: in.Valid, Mode: in.Mode & 0o7777,
		UID: in.Uid, GID: in.Gid, Size: int64(in.Size)}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		op.Kind = Truncate
	}
	if in.Valid&(fuse.FATTR_SIZE|fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) == 0 {
		if code := l.broken(); code == fuse.EROFS {
			return code
		}
		return l.RawFileSystem.SetAttr(stop, in, out)
	}
	return l.change(op, func() fuse.Status {
		return l.RawFileSystem.SetAttr(stop, in, out)
	}, nil)
}

// Write implements fuse.RawFileSystem.
func (l *Layer) Write(stop <-chan struct{}, in *fuse.WriteIn, data []byte) (n uint32,
	code fuse.Status) {
	op := Op{Kind: Write, ID: l.id(in.NodeId), Off: int64(in.Offset),
		Data: bytes.Clone(data)}
	code = l.change(op, func() (code fuse.Status) {
		n, code = l.RawFileSystem.Write(stop, in, data)
		return code
	}, nil)
	return n, code
}

// Writev implements fuse.RawFileSystem.
func (l *Layer) Writev(stop <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32,
	fuse.Status) {
	return l.Write(stop, in, bytes.Join(data, nil))
}

// CopyFileRange implements fuse.RawFileSystem.
func (l *Layer) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS // the kernel copies by reads and writes
}

// Fallocate implements fuse.RawFileSystem.
func (l *Layer) Fallocate(stop <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	op := Op{Kind: Fallocate, ID: l.id(in.NodeId), Off: int64(in.Offset), Size: int64(in.Length),
		Mode: in.Mode}
	return l.change(op, func() fuse.Status { return l.RawFileSystem.Fallocate(stop, in) }, nil)
}

// SetXAttr implements fuse.RawFileSystem. A record leaves attributes out: nothing depends on them.
func (l *Layer) SetXAttr(stop <-chan struct{}, in *fuse.SetXAttrIn, name string,
	value []byte) fuse.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	if code := l.failing("setxattr " + name); !code.Ok() {
		return code
	}
	return l.RawFileSystem.SetXAttr(stop, in, name, value)
}

// Fsync implements fuse.RawFileSystem. It only notes the sync: no test cuts the host's power.
func (l *Layer) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return l.change(Op{Kind: Sync, ID: l.id(in.NodeId)}, func() fuse.Status { return fuse.OK }, nil)
}

// FsyncDir implements fuse.RawFileSystem.
func (l *Layer) FsyncDir(stop <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return l.Fsync(stop, in)
}

// broken returns the error of all changes, if the disk fails now.
func (l *Layer) broken() fuse.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at := l.fault.At; l.armed && !l.fault.Once && at >= 0 && len(l.points) > at {
		return fuse.Status(l.fault.Errno)
	}
	return fuse.OK
}

// Open implements fuse.RawFileSystem. While a file system is read-only, no file is opened to write.
func (l *Layer) Open(stop <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if l.broken() == fuse.EROFS && in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return fuse.EROFS
	}
	return l.RawFileSystem.Open(stop, in, out)
}

// StatFs implements fuse.RawFileSystem. A full disk has no room.
func (l *Layer) StatFs(stop <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	code := l.RawFileSystem.StatFs(stop, in, out)
	if l.broken() == fuse.Status(syscall.ENOSPC) {
		out.Bavail, out.Bfree = 0, 0
	}
	return code
}

// scan returns the tree of a directory, and the ids of its inodes.
func scan(dir string) (*Tree, map[uint64]ID, error) {
	t := newTree()
	ids := make(map[uint64]ID)
	at := map[string]ID{dir: Root}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if path == dir {
			ids[st.Ino] = Root
			t.nodes[Root].attrs = attrs{st.Mode & 0o7777, st.Uid, st.Gid}
			return nil
		}
		id, seen := ids[st.Ino]
		if !seen {
			id = t.next()
			ids[st.Ino] = id
			if t.nodes[id], err = readNode(path, info); err != nil {
				return err
			}
		}
		at[path] = id
		t.nodes[at[filepath.Dir(path)]].names[filepath.Base(path)] = id
		return nil
	})
	return t, ids, err
}

func readNode(path string, info os.FileInfo) (*node, error) {
	st := info.Sys().(*syscall.Stat_t)
	n := &node{kind: st.Mode & syscall.S_IFMT, attrs: attrs{st.Mode & 0o7777, st.Uid, st.Gid}}
	var err error
	switch n.kind {
	case syscall.S_IFDIR:
		n.names = make(map[string]ID)
	case syscall.S_IFLNK:
		n.link, err = os.Readlink(path)
	case syscall.S_IFREG:
		var content []byte
		content, err = os.ReadFile(path)
		n.write(0, content)
	}
	return n, err
}
