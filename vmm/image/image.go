package image

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/rootfs"
)

// Builtin is the name of the image that VMs boot unless they name another.
const Builtin = vmm.BuiltinImage

// manifestName is the file that makes a directory an image.
const manifestName = "image.json"

// manifestLimit bounds an image.json; one that is longer is refused.
const manifestLimit = 64 << 10

// manifest holds an image.json. Kernel, Initrd, Root and Extra name files beside it.
type manifest struct {
	Kernel  string    `json:"kernel,omitempty"`
	Initrd  string    `json:"initrd,omitempty"`
	Cmdline string    `json:"cmdline"`
	Memory  int64     `json:"memory"` // least, bytes
	Digest  string    `json:"digest"` // of the source, or of its files if it has none
	Size    int64     `json:"size"`   // bytes that all its files occupy
	Created time.Time `json:"created"`
	Source  string    `json:"source"`
	Inputs  string    `json:"inputs,omitempty"` // the key of its build
	Agent   string    `json:"agent,omitempty"`  // the digest of the agent in Initrd, without a disk

	Firmware   bool   `json:"firmware,omitempty"`
	Root       string `json:"root,omitempty"`
	RootFormat string `json:"root_format,omitempty"`

	// For a root disk without firmware. Initrd joins Extra to the initramfs of the built-in image
	// with the digest Base, whose kernel serves unless OwnKernel is set.
	Extra     string `json:"extra,omitempty"`
	Base      string `json:"base,omitempty"`
	OwnKernel bool   `json:"own_kernel,omitempty"`

	// What the author of a container's image says about its program. Nothing acts on it.
	Exposed     []string            `json:"exposed,omitempty"` // ports, as 80/tcp
	Healthcheck *rootfs.Healthcheck `json:"healthcheck,omitempty"`

	check    string // Healthcheck as one line of JSON, empty for none
	rootSize int64  // of Root, as the guest sees it; read from Root itself
}

// Names returns the sorted names of the images that are ready.
func (s *Set) Names() []string {
	var names []string
	for _, i := range s.Infos() {
		if i.Status == vmm.ImageReady {
			names = append(names, i.Name)
		}
	}
	return names
}

// Image returns an image by its name. The error is a vmm.MissingImage for a missing image and
// vmm.ErrBusy for one that is not ready yet. For a damaged image it describes the damage. The
// built-in image serves as it was while it is made anew, and after that has failed.
func (s *Set) Image(name string) (vmm.Image, error) {
	e := s.item(name)
	if e == nil {
		s.scan()
		if e = s.item(name); e == nil {
			return vmm.Image{}, &vmm.MissingImage{Name: name}
		}
	}
	i := s.info(e)
	if i.Status != vmm.ImageReady && name == Builtin {
		m, err := s.manifest(e)
		if err == nil {
			return m.image(name, s.path(name)), nil
		}
		if i.Status == vmm.ImageEmpty {
			return vmm.Image{}, &vmm.MissingImage{Name: name}
		}
	}
	switch i.Status {
	case vmm.ImageReady:
		return i.Image, nil
	case vmm.ImageFailed:
		return vmm.Image{}, fmt.Errorf("image %s cannot be used: %s", name, i.Reason)
	default:
		return vmm.Image{}, fmt.Errorf("image %s is %s, not ready: %w", name, i.Status, vmm.ErrBusy)
	}
}

// image returns the image in dir for a machine.
func (m *manifest) image(name, dir string) vmm.Image {
	img := vmm.Image{
		Name:    name,
		Cmdline: m.Cmdline,
		Memory:  m.Memory,
		Digest:  m.Digest,
		Size:    m.Size,
		Created: m.Created,
		Source:  m.Source,

		Firmware:   m.Firmware,
		RootFormat: m.RootFormat,
		RootSize:   m.rootSize,
	}
	for _, f := range []struct {
		path *string
		name string
	}{{&img.Kernel, m.Kernel}, {&img.Initrd, m.Initrd}, {&img.Root, m.Root}} {
		if f.name != "" {
			*f.path = filepath.Join(dir, f.name)
		}
	}
	return img
}

// readManifest returns dir's image.json. It is an error if a file that it names is missing.
func readManifest(dir string) (*manifest, error) {
	f, err := os.Open(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, manifestLimit+1))
	if err != nil {
		return nil, err
	}
	if len(b) > manifestLimit {
		return nil, fmt.Errorf("%s is longer than %d bytes", manifestName, manifestLimit)
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, err
	}
	for _, name := range m.files() {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			// A missing file is damage, not a missing image.
			return nil, fmt.Errorf("file %s: %v", name, err)
		}
		if !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("file %s is not a regular file", name)
		}
	}
	if m.Root != "" {
		m.rootSize, err = diskSize(filepath.Join(dir, m.Root), m.RootFormat)
	}
	return m, err
}

// diskSize returns the length of a disk as the guest sees it, in bytes.
func diskSize(path, format string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := host.DiskSize(f, format)
	if err != nil {
		return 0, fmt.Errorf("file %s: %w", filepath.Base(path), err)
	}
	return size, nil
}

func parseManifest(b []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Kernel == "" && !m.Firmware && m.Extra == "" {
		return nil, fmt.Errorf("%s names no kernel", manifestName)
	}
	if (m.Root == "") != (m.RootFormat == "") || m.Firmware && m.Root == "" {
		return nil, fmt.Errorf("%s names no root disk or not its format", manifestName)
	}
	for _, name := range m.files() {
		if strings.Contains(name, "/") || name == "." || name == ".." || name == manifestName {
			return nil, fmt.Errorf("%s: %q is not the name of a file beside it", manifestName, name)
		}
	}
	if m.Memory < 0 || m.Size < 0 {
		return nil, fmt.Errorf("%s: negative size", manifestName)
	}
	if m.Healthcheck != nil {
		text, err := json.Marshal(m.Healthcheck)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", manifestName, err)
		}
		m.check = string(text)
	}
	return &m, nil
}

// files returns the names of the image's files beside image.json.
func (m *manifest) files() []string {
	names := []string{m.Kernel, m.Initrd, m.Root, m.Extra}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}
