package fs

import (
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"

	"banger/fs/guestfs"
)

// bridge receives the kernel's requests. It times each and passes it on to the tree, for the rows
// of the table, or to the files of guests. The directory `fs` of a VM is a row of the tree, but its
// content is the guest's.
type bridge struct {
	tree
	guests *guestfs.FS
	took   map[string]prometheus.Observer // by operation
}

// Short names for the signatures of fuse.RawFileSystem.
type (
	status    = fuse.Status
	interrupt = <-chan struct{} // closed when the caller of a request was interrupted
)

// operations are the timed requests, by their names in the protocol (fuse(4)). Others are refused
// without a look.
var operations = []string{
	"LOOKUP", "FORGET", "GETATTR", "SETATTR", "MKDIR", "RMDIR", "RENAME", "OPEN", "READ", "WRITE",
	"LSEEK", "FLUSH", "FSYNC", "RELEASE", "OPENDIR", "READDIR", "READDIRPLUS", "RELEASEDIR",
	"ACCESS", "STATFS", "CREATE", "UNLINK", "LINK", "SYMLINK", "READLINK",
}

// newBridge also returns the histograms of its requests, which it does not register.
func newBridge(s *Server) (*bridge, prometheus.Collector) {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "banger_fuse_request_duration_seconds",
		Help:    "How long requests of the kernel took, those that wait for something included.",
		Buckets: []float64{0.00001, 0.0001, 0.001, 0.01, 0.1, 1, 10},
	}, []string{"operation"})
	b := &bridge{
		tree:   tree{fuse.NewDefaultRawFileSystem(), s},
		guests: s.guests, took: make(map[string]prometheus.Observer),
	}
	for _, name := range operations {
		b.took[name] = v.WithLabelValues(name)
	}
	return b, v
}

func (b *bridge) timed(operation string, began time.Time) {
	b.took[operation].Observe(time.Since(began).Seconds())
}

// of returns the owner of a node.
func (b *bridge) of(node uint64) fuse.RawFileSystem {
	if guestfs.IsFile(node) {
		return b.guests
	}
	return b.tree
}

// within returns the owner of a directory's content.
func (b *bridge) within(node uint64) fuse.RawFileSystem {
	if inGuest(node) {
		return b.guests
	}
	return b.tree
}

// inGuest reports whether the content of a directory is a guest's.
func inGuest(node uint64) bool {
	_, root := guestMount{}.Root(node)
	return root || guestfs.IsFile(node)
}

func (b *bridge) Lookup(stop interrupt, h *fuse.InHeader, name string, out *fuse.EntryOut) status {
	defer b.timed("LOOKUP", time.Now())
	return b.within(h.NodeId).Lookup(stop, h, name, out)
}
func (b *bridge) Forget(node, lookups uint64) {
	defer b.timed("FORGET", time.Now())
	if serial, ok := (guestMount{}).Root(node); ok && b.o.Manager.BySerial(serial) == nil {
		b.guests.Forget(node, 1) // the root of a guest that is gone
	}
	b.of(node).Forget(node, lookups)
}
func (b *bridge) GetAttr(stop interrupt, in *fuse.GetAttrIn, out *fuse.AttrOut) status {
	defer b.timed("GETATTR", time.Now())
	return b.of(in.NodeId).GetAttr(stop, in, out)
}
func (b *bridge) SetAttr(stop interrupt, in *fuse.SetAttrIn, out *fuse.AttrOut) status {
	defer b.timed("SETATTR", time.Now())
	return b.toldAttr(stop, in, b.of(in.NodeId).SetAttr(stop, in, out))
}
func (b *bridge) Mkdir(stop interrupt, in *fuse.MkdirIn, name string, out *fuse.EntryOut) status {
	defer b.timed("MKDIR", time.Now())
	code := b.within(in.NodeId).Mkdir(stop, in, name, out)
	return b.toldName(stop, &in.InHeader, name, "mkdir", code)
}
func (b *bridge) Rmdir(stop interrupt, h *fuse.InHeader, name string) status {
	defer b.timed("RMDIR", time.Now())
	code := b.within(h.NodeId).Rmdir(stop, h, name)
	return b.toldName(stop, h, name, "rmdir", code)
}
func (b *bridge) Rename(stop interrupt, in *fuse.RenameIn, from, to string) status {
	defer b.timed("RENAME", time.Now())
	code := fuse.EXDEV
	if !inGuest(in.Newdir) || inGuest(in.NodeId) {
		code = b.within(in.NodeId).Rename(stop, in, from, to)
	}
	target := strings.TrimPrefix(b.pathOf(in.Newdir)+"/"+to, "/")
	return b.toldName(stop, &in.InHeader, from, "rename:"+target, code)
}
func (b *bridge) Open(stop interrupt, in *fuse.OpenIn, out *fuse.OpenOut) status {
	defer b.timed("OPEN", time.Now())
	return b.toldOpen(stop, in, b.of(in.NodeId).Open(stop, in, out))
}
func (b *bridge) Read(stop interrupt, in *fuse.ReadIn, p []byte) (fuse.ReadResult, status) {
	defer b.timed("READ", time.Now())
	if int64(in.Offset) < 0 {
		return nil, fuse.EINVAL
	}
	return b.of(in.NodeId).Read(stop, in, p)
}
func (b *bridge) Write(stop interrupt, in *fuse.WriteIn, data []byte) (uint32, status) {
	defer b.timed("WRITE", time.Now())
	if int64(in.Offset) < 0 {
		return 0, fuse.EINVAL
	}
	return b.of(in.NodeId).Write(stop, in, data)
}
func (b *bridge) Lseek(stop interrupt, in *fuse.LseekIn, out *fuse.LseekOut) status {
	defer b.timed("LSEEK", time.Now())
	if int64(in.Offset) < 0 {
		return status(syscall.ENXIO)
	}
	return b.of(in.NodeId).Lseek(stop, in, out)
}
func (b *bridge) Flush(interrupt, *fuse.FlushIn) status {
	defer b.timed("FLUSH", time.Now())
	return fuse.OK
}
func (b *bridge) Fsync(stop interrupt, in *fuse.FsyncIn) status {
	defer b.timed("FSYNC", time.Now())
	return b.of(in.NodeId).Fsync(stop, in)
}
func (b *bridge) FsyncDir(stop interrupt, in *fuse.FsyncIn) status {
	return b.of(in.NodeId).FsyncDir(stop, in)
}
func (b *bridge) Release(stop interrupt, in *fuse.ReleaseIn) {
	defer b.timed("RELEASE", time.Now())
	b.of(in.NodeId).Release(stop, in)
}
func (b *bridge) OpenDir(stop interrupt, in *fuse.OpenIn, out *fuse.OpenOut) status {
	defer b.timed("OPENDIR", time.Now())
	return b.within(in.NodeId).OpenDir(stop, in, out)
}
func (b *bridge) ReadDir(stop interrupt, in *fuse.ReadIn, out *fuse.DirEntryList) status {
	defer b.timed("READDIR", time.Now())
	return b.within(in.NodeId).ReadDir(stop, in, out)
}
func (b *bridge) ReadDirPlus(stop interrupt, in *fuse.ReadIn, out *fuse.DirEntryList) status {
	defer b.timed("READDIRPLUS", time.Now())
	return b.within(in.NodeId).ReadDirPlus(stop, in, out)
}
func (b *bridge) ReleaseDir(in *fuse.ReleaseIn) {
	defer b.timed("RELEASEDIR", time.Now())
	b.within(in.NodeId).ReleaseDir(in)
}
func (b *bridge) Access(interrupt, *fuse.AccessIn) status {
	defer b.timed("ACCESS", time.Now())
	return fuse.OK
}
func (b *bridge) StatFs(stop interrupt, h *fuse.InHeader, out *fuse.StatfsOut) status {
	defer b.timed("STATFS", time.Now())
	return b.within(h.NodeId).StatFs(stop, h, out)
}
func (b *bridge) Create(stop interrupt, in *fuse.CreateIn, name string,
	out *fuse.CreateOut) status {
	defer b.timed("CREATE", time.Now())
	code := b.within(in.NodeId).Create(stop, in, name, out)
	return b.toldName(stop, &in.InHeader, name, "create", code)
}
func (b *bridge) Mknod(stop interrupt, in *fuse.MknodIn, name string, out *fuse.EntryOut) status {
	code := b.tree.Mknod(stop, in, name, out)
	return b.toldName(stop, &in.InHeader, name, "mknod", code)
}
func (b *bridge) Unlink(stop interrupt, h *fuse.InHeader, name string) status {
	defer b.timed("UNLINK", time.Now())
	code := b.within(h.NodeId).Unlink(stop, h, name)
	return b.toldName(stop, h, name, "unlink", code)
}
func (b *bridge) Link(stop interrupt, in *fuse.LinkIn, name string, out *fuse.EntryOut) status {
	defer b.timed("LINK", time.Now())
	code := b.within(in.NodeId).Link(stop, in, name, out)
	return b.toldName(stop, &in.InHeader, name, "link", code)
}
func (b *bridge) Symlink(stop interrupt, h *fuse.InHeader, target, name string,
	out *fuse.EntryOut) status {
	defer b.timed("SYMLINK", time.Now())
	code := b.within(h.NodeId).Symlink(stop, h, target, name, out)
	return b.toldName(stop, h, name, "symlink", code)
}
func (b *bridge) Readlink(stop interrupt, h *fuse.InHeader) ([]byte, status) {
	defer b.timed("READLINK", time.Now())
	return b.of(h.NodeId).Readlink(stop, h)
}
