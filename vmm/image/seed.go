package image

import (
	"fmt"

	"banger/vmm"
	"banger/vmm/guest"
	"banger/vmm/image/boot"
)

var _ vmm.Images = (*Set)(nil)

// Seed implements vmm.Images. The agent comes from the built-in image.
func (s *Set) Seed(id string, mode vmm.NetMode, c guest.Config) ([]byte, error) {
	img, err := s.Image(Builtin)
	if err != nil {
		return nil, fmt.Errorf("cannot find the agent for the guest: %w", err)
	}
	agent, err := boot.Agent(img.Initrd)
	if err != nil {
		return nil, fmt.Errorf("cannot find the agent for the guest: %w", err)
	}
	return boot.Seed(agent, id, mode, c)
}
