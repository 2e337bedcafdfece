package vmm

import (
	"context"
	"os"
	"time"
)

// BuiltinImage is the image that only the daemon's installation replaces. A VM takes whichever it
// is.
const BuiltinImage = "builtin"

// ImageStatus is the first word of an image's file `status`.
type ImageStatus string

const (
	ImageEmpty    ImageStatus = "empty" // no source was written yet
	ImageBuilding ImageStatus = "building"
	ImageReady    ImageStatus = "ready"
	ImageFailed   ImageStatus = "failed"
)

// ImageInfo is what is known of an image at one moment. It is a plain value.
type ImageInfo struct {
	Image          // as a machine needs it when Status is ready; else only Name, Source and Created
	Number  uint64 // stays with it; no other image has it while the daemon lives
	Owner   Owner
	Status  ImageStatus
	Percent int       // while building
	Reason  string    // of failed, one sentence
	Error   string    // the last command to it that was refused, one sentence
	Changed time.Time // when Status last changed
}

// Caller is the process that names files of the host: they are opened with its rights and as it would find them.
type Caller struct {
	UID, GID  uint32
	Groups    []uint32
	Root, Dir *os.File // its root and working directory, O_PATH; nil if the daemon cannot see them. Who makes the Caller closes them
}

// ImageStore is Images that are made and removed while the daemon runs. Implemented by vmm/image.
// The methods without a context do not block.
type ImageStore interface {
	Images
	// Infos gives all images, ready or not, sorted by name.
	Infos() []ImageInfo
	// Info of the image of that number, false if there is none.
	Info(number uint64) (ImageInfo, bool)
	// Create makes an empty image. ErrInvalid, ErrNameTooLong, ErrExists.
	Create(ctx context.Context, name string, owner Owner) (ImageInfo, error)
	// Build begins to make the image from a source and returns once that is recorded; the status says what becomes of it. A path in
	// the source is opened before Build returns. ErrInvalid for a source that cannot be, ErrBusy while it is being built or a VM uses it.
	Build(ctx context.Context, number uint64, source string, by Caller) error
	// Wait returns when the image is ready, with the time that its build took. ErrGone when it failed, ErrNotFound when it was removed.
	Wait(ctx context.Context, number uint64) (time.Duration, error)
	// Remove ends the image's build, if one is under way, and deletes the image. It waits for none
	// of it. ErrNotFound, ErrBusy while a VM uses it.
	Remove(ctx context.Context, name string, may Permit) error
	// Refuse keeps the sentence for a refused command to the image, nil for none.
	Refuse(number uint64, err error)
	// Blobs counts what builds have left to be used again, Collect removes what no image needs. ErrBusy while images are built.
	Blobs() (BlobCount, error)
	Collect(ctx context.Context) error
}

// BlobCount counts files of the host that images share: layers and root disks by their digests.
type BlobCount struct {
	Files       int
	Bytes       int64 // allocated
	UnusedBytes int64 // of those that no image needs
}

// ImageUsers gives the names of the VMs that have the image, sorted.
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
