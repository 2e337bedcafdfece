// Package archive exports a VM as one file and imports such a file as a new VM.
//
// An archive is a tar (POSIX.1-2001). Its first member is banger.json, the manifest. The disks that
// the manifest lists follow in its order, as qcow2 images without snapshots. The system disk holds
// only what differs from its image, which must exist where the archive is imported.
//
// An export copies the disks in a transition of the VM. The copies have no names, so that nothing
// is left of an archive when it is closed or when the daemon dies. An import believes nothing: it
// checks settings, sizes and digests, and the driver checks the disks with a uid of the import's
// own. The VM exists only after that. The package runs no goroutines.
package archive

import (
	"encoding/json"

	"banger/internal/host"
	"banger/internal/slots"
	"banger/vmm"
)

const (
	manifestName    = "banger.json"
	manifestVersion = 1
	maxManifest     = 64 << 10 // bytes
	blockSize       = 512      // of a tar
)

// Imports at once, of all users and of one.
const (
	importsAtOnce = 32
	importsOfOne  = 4
)

// manifest is the content of manifestName, beside the settings, each under its key for archives.
// Its names and units are a format: see docs/files.md.
type manifest struct {
	Version     int    `json:"version"`
	Name        string `json:"name"`
	Image       string `json:"image"`
	ImageDigest string `json:"image_digest"`
	ImageSource string `json:"image_source,omitempty"` // for messages only
	Disks       []disk `json:"disks"`

	settings map[string]json.RawMessage
}

// disk is one member after the manifest.
type disk struct {
	Name   string `json:"name"` // DiskOverlay or DiskWork
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Options are what Archives work with.
type Options struct {
	Manager *vmm.Manager
	Images  vmm.Images
	Jobs    *host.Jobs // uids for the checks of imported disks
}

// Archives implements vmm.Archives.
type Archives struct {
	o       Options
	imports *slots.Slots
}

// New returns the Archives of a Manager.
func New(o Options) *Archives {
	return &Archives{o, slots.New(importsAtOnce, importsOfOne, importsAtOnce)}
}
