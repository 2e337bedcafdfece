package image

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/host"
	"banger/vmm"
)

// recordName is the file for an image's record, which exists before and after its image.json.
const recordName = "record.json"

// interrupted is the reason of a build that ended with the daemon.
const interrupted = "the daemon ended while it was built; write its source again"

// record holds a record.json.
type record struct {
	Owner    vmm.Owner     `json:"owner"`
	Created  time.Time     `json:"created"`
	Source   string        `json:"source"`
	Building bool          `json:"building,omitempty"`
	Failed   string        `json:"failed,omitempty"` // one sentence
	Took     time.Duration `json:"took,omitempty"`   // how long the build lasted
}

// sweep removes the remains of builds and installs whose process has died.
func (s *Set) sweep() error {
	for _, dir := range []string{
		s.o.Dir, s.path(blobsName), s.path(blobsName, layersName), s.path(blobsName, builtName),
	} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") && e.Name() != blobsName {
				s.o.Log.Info("removing the remains of a build", "path", filepath.Join(dir, e.Name()))
				if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// scan adds images that other programs have put into the directory, and forgets those that are
// gone.
func (s *Set) scan() {
	for !s.scanOnce() {
	}
}

// scanOnce reports false if images came or went meanwhile: the listing may be older than they are.
func (s *Set) scanOnce() bool {
	s.mu.Lock()
	turn := s.turns
	s.mu.Unlock()
	names, err := os.ReadDir(s.o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Error("cannot list the images", "err", err)
		return true
	}
	there := make(map[string]bool)
	for _, e := range names {
		// The remains of an Install begin with a dot, which no image's name does.
		if e.IsDir() && vmm.CheckName(e.Name()) == nil {
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
	if s.turns != turn {
		return false
	}
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
	return true
}

// load returns the item of an image's directory.
func (s *Set) load(name string) *item {
	e := newItem(name)
	e.on = true
	b, err := os.ReadFile(s.path(name, recordName))
	if err == nil {
		err = json.Unmarshal(b, &e.rec)
	}
	if err != nil { // installed, not built here
		owner := vmm.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Mode: 0o755}
		e.rec = record{Owner: owner}
		if fi, err := os.Stat(s.path(name)); err == nil {
			e.rec.Created = fi.ModTime()
		}
	}
	if e.rec.Building {
		e.rec.Building, e.rec.Failed = false, interrupted
	}
	e.user = s.o.User(e.rec.Owner.UID)
	e.created, e.changed = e.rec.Created, e.rec.Created
	return e
}

// keep replaces the image's directory in one step with its record and the files of fill. Without
// fill only the built-in image keeps its files. The caller holds own, or no other goroutine knows e.
func (s *Set) keep(e *item, fill func(dir string) error) error {
	if m, err := readManifest(s.path(e.name)); fill == nil && e.name == Builtin && err == nil {
		fill = func(dir string) error {
			return errors.Join(linkFiles(m, s.path(e.name), dir), writeManifest(dir, m))
		}
	}
	s.mu.Lock()
	text, err := json.MarshalIndent(&e.rec, "", "  ")
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return host.ReplaceDir(s.path(e.name), func(dir string) error {
		if fill != nil {
			if err := fill(dir); err != nil {
				return err
			}
		}
		return host.WriteSynced(filepath.Join(dir, recordName), append(text, '\n'))
	})
}

// install replaces the image's directory with the files in from. The caller holds own, or no other
// goroutine knows e.
func (s *Set) install(e *item, m *manifest, from string) error {
	return s.keep(e, func(dir string) error {
		for _, name := range m.files() {
			if m.Extra != "" && (name == m.Initrd || name == m.Kernel && !m.OwnKernel) {
				continue // compose makes them
			}
			err := host.LinkOrCopy(filepath.Join(from, name), filepath.Join(dir, name))
			if err != nil {
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

// writeManifest writes dir's image.json.
func writeManifest(dir string, m *manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return host.WriteSynced(filepath.Join(dir, manifestName), append(text, '\n'))
}
