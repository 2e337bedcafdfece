package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"
)

// operations are the requests of the kernel that are timed, by their names in the protocol (fuse(4)).
// What is refused without a look is not among them.
var operations = [...]string{"LOOKUP", "FORGET", "GETATTR", "SETATTR", "MKDIR", "RMDIR", "RENAME", "OPEN", "READ", "WRITE", "FLUSH", "FSYNC",
	"RELEASE", "OPENDIR", "READDIR", "READDIRPLUS", "RELEASEDIR", "ACCESS", "STATFS",
	"CREATE", "UNLINK", "LINK", "SYMLINK", "READLINK"}

const (
	opLookup = iota
	opForget
	opGetAttr
	opSetAttr
	opMkdir
	opRmdir
	opRename
	opOpen
	opRead
	opWrite
	opFlush
	opFsync
	opRelease
	opOpenDir
	opReadDir
	opReadDirPlus
	opReleaseDir
	opAccess
	opStatFs
	opCreate
	opUnlink
	opLink
	opSymlink
	opReadlink
)

// timed counts and times the requests on their way to raw.
type timed struct {
	tree
	took [len(operations)]prometheus.Observer
}

// newTimed registers nothing: the caller may register the histograms that it gives.
func newTimed(r tree) (*timed, prometheus.Collector) {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "banger_fuse_request_duration_seconds", Help: "How long requests of the kernel took, those that wait for something included.",
		Buckets: []float64{0.00001, 0.0001, 0.001, 0.01, 0.1, 1, 10},
	}, []string{"operation"})
	t := &timed{tree: r}
	for i, name := range operations {
		t.took[i] = v.WithLabelValues(name)
	}
	return t, v
}

func (t *timed) ended(op int, began time.Time) { t.took[op].Observe(time.Since(began).Seconds()) }

func (t *timed) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer t.ended(opLookup, time.Now())
	return t.tree.Lookup(cancel, h, name, out)
}

func (t *timed) Forget(node, n uint64) {
	defer t.ended(opForget, time.Now())
	t.tree.Forget(node, n)
}

func (t *timed) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer t.ended(opGetAttr, time.Now())
	return t.tree.GetAttr(cancel, in, out)
}

func (t *timed) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer t.ended(opSetAttr, time.Now())
	return t.tree.SetAttr(cancel, in, out)
}

func (t *timed) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer t.ended(opMkdir, time.Now())
	return t.tree.Mkdir(cancel, in, name, out)
}

func (t *timed) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	defer t.ended(opRmdir, time.Now())
	return t.tree.Rmdir(cancel, h, name)
}

func (t *timed) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	defer t.ended(opRename, time.Now())
	return t.tree.Rename(cancel, in, from, to)
}

func (t *timed) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer t.ended(opOpen, time.Now())
	return t.tree.Open(cancel, in, out)
}

func (t *timed) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	defer t.ended(opRead, time.Now())
	return t.tree.Read(cancel, in, buf)
}

func (t *timed) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	defer t.ended(opWrite, time.Now())
	return t.tree.Write(cancel, in, data)
}

func (t *timed) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	defer t.ended(opFlush, time.Now())
	return t.tree.Flush(cancel, in)
}

func (t *timed) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	defer t.ended(opFsync, time.Now())
	return t.tree.Fsync(cancel, in)
}

func (t *timed) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	defer t.ended(opRelease, time.Now())
	t.tree.Release(cancel, in)
}

func (t *timed) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer t.ended(opOpenDir, time.Now())
	return t.tree.OpenDir(cancel, in, out)
}

func (t *timed) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer t.ended(opReadDir, time.Now())
	return t.tree.ReadDir(cancel, in, out)
}

func (t *timed) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer t.ended(opReadDirPlus, time.Now())
	return t.tree.ReadDirPlus(cancel, in, out)
}

func (t *timed) ReleaseDir(in *fuse.ReleaseIn) {
	defer t.ended(opReleaseDir, time.Now())
	t.tree.ReleaseDir(in)
}

func (t *timed) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	defer t.ended(opAccess, time.Now())
	return t.tree.Access(cancel, in)
}

func (t *timed) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	defer t.ended(opStatFs, time.Now())
	return t.tree.StatFs(cancel, h, out)
}

func (t *timed) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer t.ended(opCreate, time.Now())
	return t.tree.Create(cancel, in, name, out)
}

func (t *timed) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	defer t.ended(opUnlink, time.Now())
	return t.tree.Unlink(cancel, h, name)
}

func (t *timed) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer t.ended(opLink, time.Now())
	return t.tree.Link(cancel, in, name, out)
}

func (t *timed) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	defer t.ended(opSymlink, time.Now())
	return t.tree.Symlink(cancel, h, target, name, out)
}

func (t *timed) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	defer t.ended(opReadlink, time.Now())
	return t.tree.Readlink(cancel, h)
}
