package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

// buildsAtOnce bounds the builds of one user side by side, buildsOfAll those of all: two builds of
// one user do not delay another user's.
const (
	buildsAtOnce = 2
	buildsOfAll  = 4
)

// tellEvery is the progress between two events of a build, in percent.
const tellEvery = 10

// job is one build under way.
type job struct {
	set    *Set
	item   *item
	source source
	uid    uint32 // of the writer of the source
	rights rights // the writer's
	local  *local // the file or directory of the source's path, nil for a source without one
	ctx    context.Context
	cancel context.CancelFunc
	begun  time.Time
	ended  chan struct{} // closed when the build and its processes have ended

	// guarded by Set.mu
	percent, told int
	moved         vmm.Moved
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
	if err := s.mayBegin(e, src.kind, by.UID); err != nil {
		return err
	}
	j := &job{set: s, item: e, source: src, uid: by.UID, rights: rights{by.UID, by.GID, by.Groups},
		begun: time.Now(), ended: make(chan struct{})}
	if src.kind.Path {
		if j.local, err = s.openLocal(src.arg, by); err != nil {
			return err
		}
	}
	if err := s.launch(ctx, e, j); err != nil {
		j.local.close()
		return err
	}
	return nil
}

// opensAtOnce bounds the concurrent opens of one uid: each occupies a thread while a file system of
// the host does not answer.
const opensAtOnce = 4

func (s *Set) openLocal(name string, by vmm.Caller) (*local, error) {
	s.mu.Lock()
	if s.opens[by.UID] >= opensAtOnce {
		s.mu.Unlock()
		return nil, fmt.Errorf("%d paths of uid %d are being opened and do not answer: %w",
			opensAtOnce, by.UID, vmm.ErrBusy)
	}
	s.opens[by.UID]++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.opens[by.UID]--; s.opens[by.UID] == 0 {
			delete(s.opens, by.UID)
		}
	}()
	return openLocal(name, by)
}

// launch records the build and starts its goroutine.
func (s *Set) launch(ctx context.Context, e *item, j *job) error {
	select {
	case e.own <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.own }()
	// The built-in image is replaced in one step, and VMs start with whatever it is then.
	if users := s.usersOf(e.name); len(users) > 0 && e.name != Builtin {
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
		// The directory holds the record alone. If the daemon dies before this, the next one marks
		// the image as failed too.
		if kerr := s.keep(e, nil); kerr != nil {
			s.o.Log.Error("cannot record that a build failed", "image", e.name, "err", kerr)
		}
		s.o.Log.Error("cannot build the image", "image", e.name, "source", j.source.text, "err", err)
		detail = "failed " + reason(err)
	} else {
		s.o.Log.Info("built the image", "image", e.name, "source", j.source.text,
			"seconds", time.Since(j.begun).Seconds())
	}
	s.mu.Lock()
	e.job, e.changed = nil, time.Now()
	e.rouseLocked()
	s.mu.Unlock()
	s.tell(e.name, detail)
}

// reason returns an error as a sentence for `status`.
func reason(err error) string {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return "the host's disk is full: " + host.OneLine([]byte(err.Error()))
	}
	return host.OneLine([]byte(err.Error()))
}

// runSlot waits for the build's turn and builds.
func (s *Set) runSlot(j *job) error {
	if err := s.slots.Wait(j.ctx, j.uid); err != nil {
		return err
	}
	defer s.slots.End(j.uid)
	s.blobs.RLock()
	defer s.blobs.RUnlock()
	return inBackground(func() error { return s.build(j) })
}

// build makes the image's files, unless an earlier build had the same key, and puts them into the
// image's directory.
func (s *Set) build(j *job) error {
	p, err := j.source.kind.plan(j.ctx, j)
	if err != nil {
		return err
	}
	if p.done != nil {
		defer p.done()
	}
	if j.item.name == Builtin {
		return s.renew(j, p)
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

// turn waits until no other goroutine has the turn of a key, and begins its own.
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

// makeBuilt makes the files of a plan in the blob of its key.
func (s *Set) makeBuilt(j *job, p *plan, dir string) (*manifest, error) {
	if err := host.MakeDirs(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	var m *manifest
	err := host.ReplaceDir(dir, func(tmp string) (err error) {
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

// publish makes the image ready in one step.
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

// owner is part of the key of builds from a user's files, which the user may change during the
// build: no other user's image shares such a build. It is empty for builds from a registry, because
// the daemon checks the digests of these.
func (j *job) owner() []byte {
	if j.local == nil {
		return nil
	}
	return fmt.Appendf(nil, "uid %d", j.uid)
}

// progress sets how much of the build is done, from 0 to 1, in a step that counts no bytes.
func (j *job) progress(done float64) { j.step(done, vmm.Moved{}) }

// step sets how much of the build is done, and the bytes of the step that is under way.
func (j *job) step(done float64, moved vmm.Moved) {
	percent := max(0, min(99, int(done*100)))
	j.set.mu.Lock()
	tell := percent >= j.told+tellEvery
	if percent > j.percent {
		j.percent = percent
	}
	j.moved = moved
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
