package image

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"banger/vmm"
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
