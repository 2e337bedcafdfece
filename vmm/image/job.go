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

// buildsAtOnce bounds the builds side by side. A user who has none gets a turn beyond them, up to
// buildsOfAll: nobody waits for another user's two builds.
const (
	buildsAtOnce = 2
	buildsOfAll  = 4
)

// tellEvery is by how many percent a build goes on between two events.
const tellEvery = 10

// job is one build under way.
type job struct {
	set    *Set
	item   *item
	source source
	uid    uint32 // of who wrote the source
	local  *local // what the source's path leads to, nil for a source without one
	ctx    context.Context
	cancel context.CancelFunc
	begun  time.Time
	ended  chan struct{} // closed when nothing of it runs any more

	percent, told int // guarded by Set.mu
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
	j := &job{set: s, item: e, source: src, uid: by.UID, begun: time.Now(), ended: make(chan struct{})}
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

// opensAtOnce bounds the paths of one uid that are being opened: a file system of the host's that
// does not answer keeps a thread for each.
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
		return "the host's disk is full: " + host.OneLine([]byte(err.Error()))
	}
	return host.OneLine([]byte(err.Error()))
}

// runSlot builds when it is the build's turn.
func (s *Set) runSlot(j *job) error {
	if err := s.slots.Wait(j.ctx, j.uid); err != nil {
		return err
	}
	defer s.slots.End(j.uid)
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

// owner is part of the key of what is built from files that a user can change meanwhile: nobody
// else's image shares it. It is empty for what a registry has, whose digests the daemon itself has
// checked.
func (j *job) owner() []byte {
	if j.local == nil {
		return nil
	}
	return fmt.Appendf(nil, "uid %d", j.uid)
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
