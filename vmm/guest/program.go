package guest

// ProgramFile is in the initramfs of an image whose root file system runs a program, not an init.
const ProgramFile = "/etc/banger/program.json"

// RootFile is in the initramfs of an image with a root disk. The agent waits for that disk.
const RootFile = "/etc/banger/root"

// Program is the program of an OCI image (image-spec, config.md), as JSON in ProgramFile. The
// image's author wrote it.
type Program struct {
	Args       []string `json:"args"` // entrypoint and command; never empty
	Env        []string `json:"env,omitempty"`
	Dir        string   `json:"dir,omitempty"`
	User       string   `json:"user,omitempty"`        // USER, UID, USER:GROUP, UID:GID ...
	Volumes    []string `json:"volumes,omitempty"`     // directories, which the build makes
	StopSignal string   `json:"stop_signal,omitempty"` // SIGTERM, TERM, 15; SIGTERM if empty
}
