package boot

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/host"
	"banger/vmm/guest"
)

// The files that a machine with a root disk boots, beside the disk.
const (
	ExtraName  = "extra.cpio"     // additions of an image to the built-in initramfs
	InitrdName = "initramfs.cpio" // the built-in initramfs with the image's extra behind it
)

// ExtraLimit bounds the file ExtraName, in bytes.
const ExtraLimit = 256 << 20

// Made lists the files that Write has made beside ExtraName.
type Made struct {
	OwnKernel bool   `json:"own_kernel,omitempty"` // the root's kernel is there
	PVH       bool   `json:"pvh,omitempty"`        // it is uncompressed
	Warning   string `json:"warning,omitempty"`    // why the root's kernel cannot be used
}

// KernelName returns the name of the kernel's file, empty if there is none.
func (m Made) KernelName() string {
	switch {
	case m.PVH:
		return "vmlinux"
	case m.OwnKernel:
		return "vmlinuz"
	}
	return ""
}

// Write writes into dir the files that a machine with a root disk boots and that come from its own
// image: the kernel, if k can be used, and ExtraName with its modules. k is nil for a root without
// a kernel, program for one whose own init runs.
func Write(dir string, k *Kernel, program *guest.Program) (Made, error) {
	var made Made
	extra := []entry{fileEntry(strings.TrimPrefix(guest.RootFile, "/"), 0o644, nil)}
	if k != nil {
		if modules, err := k.entries(); err != nil {
			made.Warning = host.OneLine([]byte(err.Error()))
		} else {
			extra = append(extra, modules...)
			if made, err = k.write(dir); err != nil {
				return Made{}, err
			}
		}
	}
	if program != nil {
		text, err := json.Marshal(program)
		if err != nil {
			return Made{}, err
		}
		name := strings.TrimPrefix(guest.ProgramFile, "/")
		extra = append(extra, fileEntry(name, 0o644, text))
	}
	archive, err := packInitramfs(extra)
	if err != nil {
		return Made{}, err
	}
	if len(archive) > ExtraLimit {
		return Made{}, fmt.Errorf("its kernel's modules have more than %d bytes", ExtraLimit)
	}
	return made, host.WriteSynced(filepath.Join(dir, ExtraName), archive)
}

// write writes the kernel, uncompressed where a VMM can enter it so.
func (k *Kernel) write(dir string) (Made, error) {
	made, image := Made{OwnKernel: true}, *k.image
	if vmlinux, err := PVHKernel(image); err == nil {
		made.PVH, image = true, vmlinux
	}
	return made, host.WriteSynced(filepath.Join(dir, made.KernelName()), image)
}

// Join writes two initramfs archives one behind the other, the second at a multiple of 512 bytes.
// The kernel unpacks both in turn; files of the second replace those of the first.
func Join(to, first, second string) error {
	const align = 512
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	for _, name := range []string{first, second} {
		if err := appendFile(f, name, align); err != nil {
			f.Close()
			return err
		}
	}
	return host.CloseSynced(f)
}

// appendFile appends a file's content to f, at a multiple of align bytes.
func appendFile(f *os.File, name string, align int64) error {
	from, err := os.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	end, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := f.Seek((align-end%align)%align, io.SeekCurrent); err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return err
}
