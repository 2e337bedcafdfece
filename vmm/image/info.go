package image

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

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

// info returns an image with its status.
func (s *Set) info(e *item) vmm.ImageInfo {
	s.mu.Lock()
	i := vmm.ImageInfo{
		Image:  vmm.Image{Name: e.name, Source: e.rec.Source, Created: e.created},
		Number: e.number, Owner: e.rec.Owner, Error: e.refusal, Changed: e.changed,
	}
	building, failed := e.job != nil, e.rec.Failed
	if building {
		i.Percent, i.Moved = e.job.percent, e.job.moved
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
	m, err := s.manifest(e)
	switch {
	case err == nil:
		source := i.Source
		i.Status, i.Image = vmm.ImageReady, m.image(e.name, s.path(e.name))
		i.Exposed, i.Healthcheck = m.Exposed, m.check
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

// known is an image.json that was read, or the error of reading it.
type known struct {
	at       stamp
	manifest *manifest
	err      error
}

// stamp changes with an image's directory, its names, and its image.json.
type stamp [2]struct {
	device, inode uint64
	size          int64
	changed       unix.Timespec
}

// settleTime is longer than the clock of a file system stands still. A file that changed later than
// this before it was read may change again without another stamp.
const settleTime = 100 * time.Millisecond

// manifest returns an image's image.json. It reads the file only if the image's stamp has changed:
// the mount asks for it at each lookup.
func (s *Set) manifest(e *item) (*manifest, error) {
	dir := s.path(e.name)
	begun := time.Now()
	at, err := stampOf(dir)
	if err != nil {
		return readManifest(dir)
	}
	s.mu.Lock()
	last := e.known
	s.mu.Unlock()
	if last != nil && last.at == at {
		return last.manifest, last.err
	}
	m, err := readManifest(dir)
	if begun.Sub(at.latest()) > settleTime {
		s.mu.Lock()
		e.known = &known{at, m, err}
		s.mu.Unlock()
	}
	return m, err
}

// stampOf returns the stamp of the image in dir.
func stampOf(dir string) (at stamp, err error) {
	for i, name := range []string{dir, filepath.Join(dir, manifestName)} {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return at, err
		}
		at[i].device, at[i].inode = uint64(st.Dev), st.Ino
		at[i].size, at[i].changed = st.Size, st.Ctim
	}
	return at, nil
}

// latest returns when the directory or the file changed last.
func (at *stamp) latest() time.Time {
	var latest time.Time
	for _, part := range at {
		if t := time.Unix(part.changed.Unix()); t.After(latest) {
			latest = t
		}
	}
	return latest
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
