package guest

// ProgramFile is where the initramfs of an image says what its root file system is there to run; absent where that is an init.
const ProgramFile = "/etc/banger/program.json"

// RootFile is in the initramfs of an image with a root disk: the agent waits for that disk.
const RootFile = "/etc/banger/root"

// Program is what an OCI image runs (image-spec, config.md), as JSON in ProgramFile. It comes from whoever made the image.
type Program struct {
	Args       []string `json:"args"` // entrypoint and command; never empty
	Env        []string `json:"env,omitempty"`
	Dir        string   `json:"dir,omitempty"`
	User       string   `json:"user,omitempty"`        // USER, UID, USER:GROUP, UID:GID ...
	StopSignal string   `json:"stop_signal,omitempty"` // SIGTERM, TERM, 15; SIGTERM if empty
}
