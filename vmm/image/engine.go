package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/vmm"
)

// recordName is the file that keeps of an image what is not in its image.json.
const recordName = "record.json"

// blobsName is the directory, beside the images, of what images share; no image's name begins with a dot.
const blobsName = ".blobs"

// Below blobsName: layers by their digests, and images' files by what they were made from.
const (
	layersName = "layers"
	builtName  = "built"
)

// buildsAtOnce bounds the builds side by side.
const buildsAtOnce = 2

// tellEvery is by how many percent a build goes on between two events.
const tellEvery = 10

// interrupted is why an image is failed whose build ended with the daemon.
const interrupted = "the daemon ended while it was built; write its source again"

// Options are what a Set is made of.
type Options struct {
	Dir    string // of the images; need not exist yet
	Limits Limits
	UID    int          // whom programs run as that read what users made, where the daemon is root; 0: as the daemon itself
	Log    *slog.Logger // slog.Default() if nil
}

// Limits bound what an image may be made from.
type Limits struct {
	Bytes int64 // of all its files together; 8 GiB if 0
	Files int   // 500,000 if 0
}

// Users is who must know of images: vmm.Manager.
type Users interface {
	// ImageUsers gives the names of the VMs that have the image.
	ImageUsers(image string) []string
	// TellImage publishes an event of the image.
	TellImage(image, detail string)
}

// Set is the images below one directory. It implements vmm.ImageStore. Each build runs in a goroutine, which Close ends.
//
// Lock order: an item's own channel, then blobs, then mu. No I/O is done while mu is held.
type Set struct {
	o      Options // immutable, as is all before blobs
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	slots  chan struct{}

	blobs sync.RWMutex // read by builds, written by Collect

	mu     sync.Mutex // guards what follows, and the items
	users  Users      // nil before Serve
	items  map[string]*item
	last   uint64
	closed bool
	making map[string]chan struct{} // keys of plans that are being made, closed when they are
}

// item is an image in memory. name, number, created and own are immutable; the rest is guarded by Set.mu.
type item struct {
	name    string
	number  uint64
	created time.Time
	own     chan struct{} // held by who changes the image's directory

	rec     record
	on      bool // in the directory; false while Create makes it
	removed bool
	refusal string
	changed time.Time
	job     *job          // the build under way, nil for none
	wake    chan struct{} // closed at the next change of any of this
}

// record is record.json.
type record struct {
	Owner    vmm.Owner     `json:"owner"`
	Created  time.Time     `json:"created"`
	Source   string        `json:"source"`
	Building bool          `json:"building,omitempty"`
	Failed   string        `json:"failed,omitempty"` // one sentence
	Took     time.Duration `json:"took,omitempty"`   // of the build
}

// job is one build under way.
type job struct {
	set    *Set
	item   *item
	source source
	local  *local // what the source's path leads to, nil for a source without one
	ctx    context.Context
	cancel context.CancelFunc
	begun  time.Time
	ended  chan struct{} // closed when nothing of it runs any more

	percent, told int // guarded by Set.mu
}

var _ vmm.ImageStore = (*Set)(nil)

// Open gives the images below o.Dir. What a daemon that died has left of builds is removed, and images
// that were being built are failed. It fails when the directory is none.
func Open(o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Limits.Bytes == 0 {
		o.Limits.Bytes = 8 << 30
	}
	if o.Limits.Files == 0 {
		o.Limits.Files = 500_000
	}
	s := &Set{o: o, slots: make(chan struct{}, buildsAtOnce), items: make(map[string]*item), making: make(map[string]chan struct{})}
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

// Serve tells the Set who uses its images; before it images can only be read.
func (s *Set) Serve(users Users) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = users
}

// Close ends the builds, whose images are failed from then on, and waits for them.
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

// sweep removes what builds and installs left that ended with their process.
func (s *Set) sweep() error {
	for _, dir := range []string{s.o.Dir, s.path(blobsName), s.path(blobsName, layersName), s.path(blobsName, builtName)} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") && e.Name() != blobsName {
				s.o.Log.Info("removing what a build left", "path", filepath.Join(dir, e.Name()))
				if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// scan takes in the images that others have put into the directory, and forgets those that are gone.
func (s *Set) scan() {
	names, err := os.ReadDir(s.o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Error("cannot list the images", "err", err)
		return
	}
	there := make(map[string]bool)
	for _, e := range names {
		if e.IsDir() && vmm.CheckName(e.Name()) == nil { // not what an unfinished Install left, which begins with a dot
			there[e.Name()] = true
		}
	}
	unknown := make(map[string]*item)
	for name := range there {
		if s.item(name) == nil {
			unknown[name] = s.load(name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range unknown {
		if s.items[name] == nil {
			s.insertLocked(e)
		}
	}
	for name, e := range s.items {
		if e.on && e.job == nil && !there[name] {
			s.forgetLocked(e)
		}
	}
}

// load makes an item of what is in an image's directory.
func (s *Set) load(name string) *item {
	e := newItem(name)
	e.on = true
	b, err := os.ReadFile(s.path(name, recordName))
	if err == nil {
		err = json.Unmarshal(b, &e.rec)
	}
	if err != nil { // one that was installed, not made here
		e.rec = record{Owner: vmm.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Mode: 0o755}}
		if fi, err := os.Stat(s.path(name)); err == nil {
			e.rec.Created = fi.ModTime()
		}
	}
	if e.rec.Building {
		e.rec.Building, e.rec.Failed = false, interrupted
	}
	e.created, e.changed = e.rec.Created, e.rec.Created
	return e
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
	s.last++
	e.number = s.last
	s.items[e.name] = e
}

func (s *Set) forgetLocked(e *item) {
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

// tell publishes an event; mu is not held.
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

// Infos implements vmm.ImageStore.
func (s *Set) Infos() []vmm.ImageInfo {
	s.scan()
	s.mu.Lock()
	var all []*item
	for _, e := range s.items {
		if e.on {
			all = append(all, e)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *item) int { return strings.Compare(a.name, b.name) })
	infos := make([]vmm.ImageInfo, 0, len(all))
	for _, e := range all {
		infos = append(infos, s.info(e))
	}
	return infos
}

// Info implements vmm.ImageStore.
func (s *Set) Info(number uint64) (vmm.ImageInfo, bool) {
	e := s.byNumber(number)
	if e == nil {
		return vmm.ImageInfo{}, false
	}
	return s.info(e), true
}

// info reads the image.json of one that is neither empty nor failed nor being built.
func (s *Set) info(e *item) vmm.ImageInfo {
	s.mu.Lock()
	i := vmm.ImageInfo{
		Image:  vmm.Image{Name: e.name, Source: e.rec.Source, Created: e.created},
		Number: e.number, Owner: e.rec.Owner, Error: e.refusal, Changed: e.changed,
	}
	building, failed := e.job != nil, e.rec.Failed
	if building {
		i.Percent = e.job.percent
	}
	s.mu.Unlock()
	switch {
	case building:
		i.Status = vmm.ImageBuilding
		return i
	case failed != "":
		i.Status, i.Reason = vmm.ImageFailed, failed
		return i
	}
	m, err := readManifest(s.path(e.name))
	switch {
	case err == nil:
		source := i.Source
		i.Status, i.Image = vmm.ImageReady, m.image(e.name, s.path(e.name))
		if source != "" {
			i.Source = source
		}
	case errors.Is(err, fs.ErrNotExist):
		i.Status = vmm.ImageEmpty
	default:
		i.Status, i.Reason = vmm.ImageFailed, err.Error()
	}
	return i
}

// Refuse implements vmm.ImageStore.
func (s *Set) Refuse(number uint64, err error) {
	e := s.byNumber(number)
	if e == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.refusal = ""
	if err != nil {
		e.refusal = err.Error()
	}
}

// Create implements vmm.ImageStore.
func (s *Set) Create(ctx context.Context, name string, owner vmm.Owner) (vmm.ImageInfo, error) {
	if err := vmm.CheckName(name); err != nil {
		return vmm.ImageInfo{}, err
	}
	s.scan()
	e := newItem(name)
	e.created = time.Now()
	e.changed = e.created
	e.rec = record{Owner: owner, Created: e.created}
	s.mu.Lock()
	if s.items[name] != nil || s.closed {
		s.mu.Unlock()
		return vmm.ImageInfo{}, fmt.Errorf("cannot create image %s: %w", name, vmm.ErrExists)
	}
	s.insertLocked(e)
	s.mu.Unlock()
	err := os.MkdirAll(s.o.Dir, 0o755)
	if err == nil {
		err = s.keep(e, nil)
	}
	s.mu.Lock()
	if err != nil {
		s.forgetLocked(e)
	} else {
		e.on = true
	}
	s.mu.Unlock()
	if err != nil {
		return vmm.ImageInfo{}, fmt.Errorf("cannot create image %s: %w", name, err)
	}
	s.tell(name, "create")
	return s.info(e), nil
}

// keep writes the image's directory anew, in one step: its record and what fill puts there. The caller holds own, or nobody else knows e.
func (s *Set) keep(e *item, fill func(dir string) error) error {
	s.mu.Lock()
	text, err := json.MarshalIndent(&e.rec, "", "  ")
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return replaceDir(s.path(e.name), func(dir string) error {
		if fill != nil {
			if err := fill(dir); err != nil {
				return err
			}
		}
		return writeSynced(filepath.Join(dir, recordName), append(text, '\n'))
	})
}

// Build implements vmm.ImageStore.
func (s *Set) Build(ctx context.Context, number uint64, text string, by vmm.Caller) error {
	e := s.byNumber(number)
	if e == nil {
		return vmm.ErrNotFound
	}
	if err := s.begin(ctx, e, text, by); err != nil {
		return fmt.Errorf("cannot make image %s: %w", e.name, err)
	}
	return nil
}

func (s *Set) begin(ctx context.Context, e *item, text string, by vmm.Caller) error {
	src, err := parseSource(text)
	if err != nil {
		return err
	}
	if e.name == Builtin {
		return fmt.Errorf("it is the one that the daemon was installed with; make another: %w", vmm.ErrNotPermitted)
	}
	j := &job{set: s, item: e, source: src, begun: time.Now(), ended: make(chan struct{})}
	if src.kind.path {
		if j.local, err = openLocal(src.arg, by); err != nil {
			return err
		}
	}
	if err := s.launch(ctx, e, j); err != nil {
		j.local.close()
		return err
	}
	return nil
}

// launch records the build and begins it.
func (s *Set) launch(ctx context.Context, e *item, j *job) error {
	select {
	case e.own <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.own }()
	if users := s.usersOf(e.name); len(users) > 0 {
		return fmt.Errorf("it is used by %s: %w", strings.Join(users, ", "), vmm.ErrBusy)
	}
	s.mu.Lock()
	switch {
	case e.removed:
		s.mu.Unlock()
		return vmm.ErrNotFound
	case s.closed, e.job != nil:
		s.mu.Unlock()
		return fmt.Errorf("it is being built; rmdir ends that: %w", vmm.ErrBusy)
	}
	old := e.rec
	e.rec.Source, e.rec.Building, e.rec.Failed, e.rec.Took = j.source.text, true, "", 0
	s.mu.Unlock()
	if err := s.keep(e, nil); err != nil {
		s.mu.Lock()
		e.rec = old
		s.mu.Unlock()
		return err
	}
	j.ctx, j.cancel = context.WithCancel(s.ctx)
	s.mu.Lock()
	e.job, e.changed, e.refusal = j, time.Now(), ""
	e.rouseLocked()
	s.work.Add(1)
	s.mu.Unlock()
	s.tell(e.name, "building 0")
	go s.run(j)
	return nil
}

// run is the goroutine of a build.
func (s *Set) run(j *job) {
	defer s.work.Done()
	defer close(j.ended)
	defer j.cancel()
	err := s.runSlot(j)
	j.local.close()
	e := j.item
	e.own <- struct{}{}
	defer func() { <-e.own }()
	s.mu.Lock()
	e.rec.Building = false
	if err != nil {
		e.rec.Failed = reason(err)
		if s.ctx.Err() != nil {
			e.rec.Failed = interrupted
		}
	}
	removed := e.removed
	s.mu.Unlock()
	if removed {
		return
	}
	detail := "ready"
	if err != nil {
		// Its directory holds nothing but the record, which a daemon that dies before this is done reads as the same.
		if kerr := s.keep(e, nil); kerr != nil {
			s.o.Log.Error("cannot record that a build failed", "image", e.name, "err", kerr)
		}
		s.o.Log.Error("image not built", "image", e.name, "source", j.source.text, "err", err)
		detail = "failed " + reason(err)
	} else {
		s.o.Log.Info("image is built", "image", e.name, "source", j.source.text, "seconds", time.Since(j.begun).Seconds())
	}
	s.mu.Lock()
	e.job, e.changed = nil, time.Now()
	e.rouseLocked()
	s.mu.Unlock()
	s.tell(e.name, detail)
}

// reason is a sentence for `status`.
func reason(err error) string {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return "the host's disk is full: " + oneLine([]byte(err.Error()))
	}
	return oneLine([]byte(err.Error()))
}

// runSlot builds when it is the build's turn.
func (s *Set) runSlot(j *job) error {
	select {
	case s.slots <- struct{}{}:
	case <-j.ctx.Done():
		return j.ctx.Err()
	}
	defer func() { <-s.slots }()
	s.blobs.RLock()
	defer s.blobs.RUnlock()
	return inBackground(func() error { return s.build(j) })
}

// build makes the image's files, or finds them made from the same before, and puts them into its directory.
func (s *Set) build(j *job) error {
	p, err := j.source.kind.plan(j.ctx, j)
	if err != nil {
		return err
	}
	if p.done != nil {
		defer p.done()
	}
	key := blobKey(p.key)
	if err := s.turn(j.ctx, key); err != nil {
		return err
	}
	defer s.endTurn(key)
	dir := s.path(blobsName, builtName, key)
	m, err := readManifest(dir)
	if err != nil {
		if m, err = s.makeBuilt(j, p, dir); err != nil {
			return err
		}
	}
	return s.publish(j, m, dir)
}

// turn waits until nobody else makes what has the key.
func (s *Set) turn(ctx context.Context, key string) error {
	for {
		s.mu.Lock()
		other := s.making[key]
		if other == nil {
			s.making[key] = make(chan struct{})
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Set) endTurn(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.making[key])
	delete(s.making, key)
}

// makeBuilt makes the files of the plan's key.
func (s *Set) makeBuilt(j *job, p *plan, dir string) (*manifest, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	var m *manifest
	err := replaceDir(dir, func(tmp string) (err error) {
		if m, err = p.make(j.ctx, tmp); err != nil {
			return err
		}
		if err := j.ctx.Err(); err != nil {
			return err
		}
		m.Inputs = p.key
		return writeManifest(tmp, m)
	})
	return m, err
}

// publish makes the image ready, all of it in one step.
func (s *Set) publish(j *job, m *manifest, built string) error {
	e := j.item
	e.own <- struct{}{}
	defer func() { <-e.own }()
	s.mu.Lock()
	removed := e.removed || j.ctx.Err() != nil
	if !removed {
		e.rec.Building, e.rec.Took = false, time.Since(j.begun)
	}
	s.mu.Unlock()
	if removed {
		return context.Canceled
	}
	own := *m
	own.Created, own.Source = time.Now().UTC(), j.source.text
	return s.install(e, &own, built)
}

// install makes the image's directory of the files that are in from. The caller holds own, or nobody else knows e.
func (s *Set) install(e *item, m *manifest, from string) error {
	return s.keep(e, func(dir string) error {
		for _, name := range m.files() {
			if m.Extra != "" && (name == m.Initrd || name == m.Kernel && !m.OwnKernel) {
				continue // compose makes them
			}
			if err := linkOrCopy(filepath.Join(from, name), filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		if m.Extra != "" {
			if err := s.compose(dir, m); err != nil {
				return err
			}
		}
		return writeManifest(dir, m)
	})
}

// progress tells how much of the build is done, from 0 to 1.
func (j *job) progress(done float64) {
	percent := max(0, min(99, int(done*100)))
	j.set.mu.Lock()
	tell := percent >= j.told+tellEvery
	if percent > j.percent {
		j.percent = percent
	}
	if tell {
		j.told = percent
	}
	j.set.mu.Unlock()
	if tell {
		j.set.tell(j.item.name, fmt.Sprintf("building %d", percent))
	}
}

// Wait implements vmm.ImageStore.
func (s *Set) Wait(ctx context.Context, number uint64) (time.Duration, error) {
	for {
		e := s.byNumber(number)
		if e == nil {
			return 0, vmm.ErrNotFound
		}
		s.mu.Lock()
		if e.wake == nil {
			e.wake = make(chan struct{})
		}
		wake, took, removed := e.wake, e.rec.Took, e.removed
		s.mu.Unlock()
		if removed {
			return 0, vmm.ErrNotFound
		}
		switch i := s.info(e); i.Status {
		case vmm.ImageReady:
			return took, nil
		case vmm.ImageFailed:
			return 0, fmt.Errorf("image %s: %s: %w", e.name, i.Reason, vmm.ErrGone)
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Remove implements vmm.ImageStore.
func (s *Set) Remove(ctx context.Context, name string) error {
	s.scan()
	e := s.item(name)
	if e == nil {
		return fmt.Errorf("cannot remove image %s: %w", name, vmm.ErrNotFound)
	}
	if err := s.remove(ctx, e); err != nil {
		return fmt.Errorf("cannot remove image %s: %w", name, err)
	}
	return nil
}

func (s *Set) remove(ctx context.Context, e *item) error {
	if e.name == Builtin {
		return fmt.Errorf("it is the one that the daemon was installed with: %w", vmm.ErrNotPermitted)
	}
	select {
	case e.own <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.own }()
	s.mu.Lock()
	if e.removed {
		s.mu.Unlock()
		return vmm.ErrNotFound
	}
	j := e.job
	s.mu.Unlock()
	// A VM that gets the image between this look and its end has never been started with it, and a start will say what it lacks.
	if users := s.usersOf(e.name); len(users) > 0 {
		return fmt.Errorf("it is used by %s: %w", strings.Join(users, ", "), vmm.ErrBusy)
	}
	if j != nil {
		j.cancel()
	}
	// Renamed first: after a crash in between the rest is swept, and nothing half-deleted is ever an image.
	gone, err := os.MkdirTemp(s.o.Dir, ".removed-")
	if err != nil {
		return err
	}
	if err := os.Rename(s.path(e.name), filepath.Join(gone, e.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, os.Remove(gone))
	}
	if err := syncDir(s.o.Dir); err != nil {
		return err
	}
	s.mu.Lock()
	s.forgetLocked(e)
	s.mu.Unlock()
	s.tell(e.name, "remove")
	return removeTree(gone)
}

// builtin is the manifest of the image that the daemon was installed with, whose kernel, modules and agent others boot with.
func (s *Set) builtin() (*manifest, error) {
	m, err := readManifest(s.path(Builtin))
	if err != nil {
		return nil, fmt.Errorf("the built-in image is needed and cannot be read: %w", err)
	}
	return m, nil
}
