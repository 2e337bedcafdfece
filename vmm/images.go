package vmm

import (
	"context"
	"fmt"
	"os"
	"time"
)

// BuiltinImage is the image of VMs that name no other. A VM starts with whatever it is then.
const BuiltinImage = "builtin"

// MissingImage is the error of an image that is not there. It is an ErrInvalid: a VM that names it
// exists, so the writer to a file of that VM gets no ENOENT.
type MissingImage struct{ Name string }

func (e *MissingImage) Error() string {
	if e.Name == BuiltinImage {
		return "there is no built-in image yet: `banger image builtin` makes it"
	}
	return fmt.Sprintf("there is no image %.64q", e.Name)
}

// Is reports whether target is ErrNotFound or ErrInvalid.
func (e *MissingImage) Is(target error) bool {
	return target == ErrNotFound || target == ErrInvalid
}

// ImageStatus is the first word of an image's file `status`.
type ImageStatus string

const (
	ImageEmpty    ImageStatus = "empty" // without a source
	ImageBuilding ImageStatus = "building"
	ImageReady    ImageStatus = "ready"
	ImageFailed   ImageStatus = "failed"
)

// ImageInfo is the state of an image at one moment. It is a plain value.
type ImageInfo struct {
	Image          // when Status is not ready only Name, Source and Created
	Number  uint64 // of this image alone while the daemon lives
	Owner   Owner
	Status  ImageStatus
	Percent int       // while it is building
	Moved   Moved     // likewise, zero in a step that counts no bytes
	Reason  string    // of a failure, one sentence
	Error   string    // of the last refused command, one sentence
	Changed time.Time // when Status last changed

	// Of a container's image, from its author, who is not trusted:
	Exposed     []string // the ports of its program, as 80/tcp; not to be changed
	Healthcheck string   // JSON, empty for none
}

// Moved is how far a step of a build is that fetches or copies bytes.
type Moved struct {
	Bytes, Total int64
}

// Caller is the process that names files of the host. The daemon opens them with its rights, from
// its directories.
type Caller struct {
	UID, GID uint32
	Groups   []uint32
	// Root and Dir are its root and working directory, O_PATH, or nil if the daemon cannot see
	// them. The maker of the Caller closes them.
	Root, Dir *os.File
}

// ImageStore is Images that are made and removed while the daemon runs. Implemented by vmm/image.
// The methods without a context do not block.
type ImageStore interface {
	Images
	// Infos returns all images, ready or not, sorted by name.
	Infos() []ImageInfo
	// Info returns the image of that number, false if there is none.
	Info(number uint64) (ImageInfo, bool)
	// Create makes an empty image. ErrInvalid, ErrNameTooLong, ErrExists.
	Create(ctx context.Context, name string, owner Owner) (ImageInfo, error)
	// Build begins to make the image from a source and returns once that is recorded. It opens a
	// path in the source before it returns. ErrInvalid for a bad source, ErrBusy while the image is
	// building or a VM uses it.
	Build(ctx context.Context, number uint64, source string, by Caller) error
	// Wait blocks until the image is ready, and returns how long its build took. ErrGone when it
	// has failed, ErrNotFound when it was removed.
	Wait(ctx context.Context, number uint64) (time.Duration, error)
	// Remove cancels the image's build and deletes the image. It waits for neither. ErrNotFound,
	// ErrBusy while a VM uses the image.
	Remove(ctx context.Context, name string, may Permit) error
	// Refuse makes err the last error of the image; nil clears it.
	Refuse(number uint64, err error)
	// Blobs counts the files that images share. ErrBusy while images are building.
	Blobs() (BlobCount, error)
	// Collect deletes the shared files that no image needs. ErrBusy while images are building.
	Collect(ctx context.Context) error
}

// BlobCount counts files that images share: layers and root disks, by their digests.
type BlobCount struct {
	Files       int
	Bytes       int64 // allocated
	UnusedBytes int64 // of files that no image needs
}

// ImageUsers returns the names of the VMs that have the image, sorted.
func (m *Manager) ImageUsers(image string) []string {
	var users []string
	for _, v := range m.VMs() {
		if s := v.Snapshot(); s.Config.Image == image {
			users = append(users, s.Name)
		}
	}
	return users
}

// TellImage publishes an event of an image.
func (m *Manager) TellImage(image, detail string) { m.emit(nil, image, EventImage, detail) }
