package fs

import (
	"bytes"
	"fmt"
)

// knownHostsShow returns the host keys of all VMs that have one, by every name of the VM (sshd(8),
// SSH_KNOWN_HOSTS FILE FORMAT).
func knownHostsShow(r *request) ([]byte, error) {
	var b bytes.Buffer
	for _, v := range r.server.o.Manager.VMs() {
		key := v.HostKey()
		if key == "" {
			continue
		}
		s := v.Snapshot()
		fmt.Fprintf(&b, "%s.vm,%s", s.Name, s.Name)
		if a := s.GuestAddress(); a.IsValid() {
			fmt.Fprintf(&b, ",%s", a)
		}
		fmt.Fprintf(&b, " %s\n", key)
	}
	return b.Bytes(), nil
}
