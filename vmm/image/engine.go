package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/internal/slots"
	"banger/vmm"
	"banger/vmm/image/rootfs"
)

// blobsName is the directory, beside the images, of the files that images share. No image's name
// begins with a dot.
const blobsName = ".blobs"

// The directories in blobsName: layers by their digests, and files of builds by their keys.
const (
	layersName = "layers"
	builtName  = "built"
)

// Options configure a Set.
type Options struct {
	Dir    string // of the images; need not exist yet
	Limits Limits
	Jobs   *host.Jobs   // uids for builds, which read users' files; nil: the daemon's own
	Host   Host         // where the parts of the built-in image are
	Log    *slog.Logger // slog.Default() if nil
	// User returns the user whose images a uid's count as; nil for the uid itself.
	User func(uid uint32) uint32
}

// Limits bound the files of an image. Zeros stand for 8 GiB and 500,000 files.
type Limits = rootfs.Limits

// Users knows which VMs use images, and publishes events. vmm.Manager implements it.
type Users interface {
	// ImageUsers returns the names of the VMs that have the image.
	ImageUsers(image string) []string
	// TellImage publishes an event of the image.
	TellImage(image, detail string)
}

// Set holds the images below one directory. It implements vmm.ImageStore. Each build runs in a
// goroutine, which Close ends.
//
// Lock order: an item's own channel, then blobs, then mu. No I/O is done while mu is held.
type Set struct {
	o      Options // immutable, as is all before blobs
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	slots  *slots.Slots

	transport  *http.Transport // to registries, see asker
	firstAgain time.Duration   // see patience

	blobs sync.RWMutex // read by builds, written by Collect

	mu     sync.Mutex // guards what follows, and the items
	users  Users      // nil before Serve
	items  map[string]*item
	turns  uint64 // counts items that came to be in the directory, or are forgotten
	last   uint64
	closed bool
	making map[string]chan struct{} // the keys of running builds; a channel is closed at its end
	opens  map[uint32]int           // how many paths are being opened, by uid
}

// item is an image in memory. The fields up to own are immutable; the rest is guarded by Set.mu.
type item struct {
	name    string
	number  uint64
	user    uint32 // whose image it is
	created time.Time
	own     chan struct{} // full while a goroutine changes the image's directory

	rec     record
	on      bool // in the images' directory; false while Create makes it
	removed bool
	refusal string
	changed time.Time
	job     *job          // the build under way, nil for none
	known   *known        // its image.json as it was last read
	wake    chan struct{} // closed at the next change of any of this
}

var _ vmm.ImageStore = (*Set)(nil)

// Open returns the images below o.Dir. It removes the remains of interrupted builds and marks their
// images as failed. It is an error if o.Dir exists and is no directory.
func Open(o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.User == nil {
		o.User = func(uid uint32) uint32 { return uid }
	}
	if o.Limits.Bytes == 0 {
		o.Limits.Bytes = 8 << 30
	}
	if o.Jobs == nil {
		o.Jobs = host.NewJobs(0)
	}
	if o.Limits.Files == 0 {
		o.Limits.Files = 500_000
	}
	s := &Set{
		o: o, slots: slots.New(buildsOfAll, buildsAtOnce, buildsAtOnce),
		transport:  http.DefaultTransport.(*http.Transport),
		firstAgain: firstAgain,
		items:      make(map[string]*item),
		making:     make(map[string]chan struct{}),
		opens:      make(map[uint32]int),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	fi, err := os.Stat(o.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("cannot open images: %w", err)
	case !fi.IsDir():
		return nil, fmt.Errorf("cannot open images: %s is not a directory", o.Dir)
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("cannot clean up after builds: %w", err)
	}
	s.scan()
	s.recompose()
	return s, nil
}

// Serve sets the users of the images. Until then no event is published and no image counts as used.
// In the background it looks whether there is a built-in image of this version.
func (s *Set) Serve(users Users) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = users
	s.work.Go(s.checkBuiltin)
}

// Close ends the builds, which marks their images as failed, and waits for them.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
}

func (s *Set) path(parts ...string) string {
	return filepath.Join(append([]string{s.o.Dir}, parts...)...)
}

func newItem(name string) *item { return &item{name: name, own: make(chan struct{}, 1)} }

func (s *Set) item(name string) *item {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.items[name]
}

func (s *Set) byNumber(number uint64) *item {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.items {
		if e.number == number {
			return e
		}
	}
	return nil
}

func (s *Set) insertLocked(e *item) {
	s.turns++
	s.last++
	e.number = s.last
	s.items[e.name] = e
}

func (s *Set) forgetLocked(e *item) {
	s.turns++
	e.removed = true
	if s.items[e.name] == e {
		delete(s.items, e.name)
	}
	e.rouseLocked()
}

func (e *item) rouseLocked() {
	if e.wake != nil {
		close(e.wake)
		e.wake = nil
	}
}

// tell publishes an event. The caller does not hold mu.
func (s *Set) tell(name, detail string) {
	s.mu.Lock()
	users := s.users
	s.mu.Unlock()
	if users != nil {
		users.TellImage(name, detail)
	}
}

func (s *Set) usersOf(name string) []string {
	s.mu.Lock()
	users := s.users
	s.mu.Unlock()
	if users == nil {
		return nil
	}
	return users.ImageUsers(name)
}

// Create implements vmm.ImageStore.
func (s *Set) Create(ctx context.Context, name string, owner vmm.Owner) (vmm.ImageInfo, error) {
	if err := vmm.CheckName(name); err != nil {
		return vmm.ImageInfo{}, err
	}
	if name == Builtin {
		if err := mayHaveBuiltin(owner.UID); err != nil {
			return vmm.ImageInfo{}, fmt.Errorf("cannot create image %s: %w", name, err)
		}
	}
	s.scan()
	e := newItem(name)
	e.created = time.Now()
	e.changed = e.created
	e.rec = record{Owner: owner, Created: e.created}
	e.user = s.o.User(owner.UID)
	s.mu.Lock()
	err := s.mayCreateLocked(e)
	if err == nil {
		s.insertLocked(e)
	}
	s.mu.Unlock()
	if err != nil {
		return vmm.ImageInfo{}, fmt.Errorf("cannot create image %s: %w", name, err)
	}
	err = host.MakeDirs(s.o.Dir, 0o755)
	if err == nil {
		err = s.keep(e, nil)
	}
	s.mu.Lock()
	if err != nil {
		s.forgetLocked(e)
	} else {
		e.on = true
		s.turns++
	}
	s.mu.Unlock()
	if err != nil {
		return vmm.ImageInfo{}, fmt.Errorf("cannot create image %s: %w", name, err)
	}
	s.tell(name, "create")
	return s.info(e), nil
}

// imagesOfUser bounds the images of one user other than root: every look-up of an image goes through
// all of them.
const imagesOfUser = 256

// mayCreateLocked refuses a name that is taken, and an image beyond imagesOfUser. A user's
// subordinate uids count as the user.
func (s *Set) mayCreateLocked(e *item) error {
	if s.items[e.name] != nil || s.closed {
		return vmm.ErrExists
	}
	if e.user == 0 {
		return nil
	}
	has := 0
	for _, other := range s.items {
		if other.user == e.user {
			has++
		}
	}
	if has >= imagesOfUser {
		return fmt.Errorf("uid %d has %d images: remove some: %w", e.user, has, syscall.EDQUOT)
	}
	return nil
}

// Remove implements vmm.ImageStore.
func (s *Set) Remove(ctx context.Context, name string, may vmm.Permit) error {
	s.scan()
	e := s.item(name)
	if e == nil {
		return fmt.Errorf("cannot remove image %s: %w", name, vmm.ErrNotFound)
	}
	if err := s.remove(ctx, e, may); err != nil {
		return fmt.Errorf("cannot remove image %s: %w", name, err)
	}
	return nil
}

// removeWait bounds the wait for an image's directory. The caller holds a lock of the kernel, for
// which other callers wait.
const removeWait = 2 * time.Second

func (s *Set) remove(ctx context.Context, e *item, may vmm.Permit) error {
	select {
	case e.own <- struct{}{}:
	case <-time.After(removeWait):
		return fmt.Errorf("its files are being put in place, try again: %w", vmm.ErrBusy)
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.own }()
	s.mu.Lock()
	if e.removed {
		s.mu.Unlock()
		return vmm.ErrNotFound
	}
	j, owner := e.job, e.rec.Owner
	s.mu.Unlock()
	if may != nil {
		if err := may(owner); err != nil {
			return err
		}
	}
	// A VM may get the image after this check. It has never been started with it, and its next
	// start reports the missing image.
	if users := s.usersOf(e.name); len(users) > 0 {
		return fmt.Errorf("it is used by %s: %w", strings.Join(users, ", "), vmm.ErrBusy)
	}
	if others := s.needBuiltin(); e.name == Builtin && len(others) > 0 {
		return fmt.Errorf("images need it: %s: %w", strings.Join(others, ", "), vmm.ErrBusy)
	}
	// The rename comes first: after a crash the rest is swept, and a half-deleted directory is
	// never an image.
	gone, err := os.MkdirTemp(s.o.Dir, ".removed-")
	if err != nil {
		return err
	}
	err = os.Rename(s.path(e.name), filepath.Join(gone, e.name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, os.Remove(gone))
	}
	unsynced := host.SyncDir(s.o.Dir)
	if unsynced != nil && os.Rename(filepath.Join(gone, e.name), s.path(e.name)) == nil {
		// It may be there after a crash, so it is there until then too.
		return errors.Join(unsynced, os.Remove(gone))
	}
	if j != nil {
		j.cancel() // it cannot install its image before own is free
	}
	s.mu.Lock()
	s.forgetLocked(e)
	s.mu.Unlock()
	s.tell(e.name, "remove")
	if unsynced != nil {
		return unsynced
	}
	if err := removeTree(gone); err != nil {
		s.o.Log.Error("the files of a removed image are deleted at the next start only",
			"image", e.name, "err", err)
	}
	return nil
}
