package image

import (
	"testing"
)

func TestMounts(t *testing.T) {
	const mountinfo = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:22 / /proc rw shared:7 - proc proc rw
40 22 0:40 / /run/banger rw - fuse.banger banger rw,user_id=0,group_id=0
41 22 0:41 / /home/a rw master:1 - fuse.sshfs a@b: rw,user_id=1000,group_id=1000,allow_other
42 22 0:42 / /srv rw - fuse.glusterfs c:/v rw,user_id=0,group_id=0
43 22 0:43 / /mnt rw - fuseblk /dev/sdb1 rw,user_id=1000
44 22 0:44 / /opt rw - fuse banger rw,user_id=0
45 22 0:45 / /home/b rw - fuse.x x` + "\u00a0" + `user_id=0 rw,user_id=1000
46 22 0:46 / /tmp rw - tmpfs  rw
`
	for id, allowed := range map[string]bool{
		"22": true, "23": false, "40": false, "41": false, "42": true, "43": false, "44": false, "45": false, "46": true,
	} {
		m := findMount([]byte(mountinfo), func(m *mount) bool { return m.id == id })
		if m == nil {
			t.Fatalf("mount %s is not found", id)
		}
		if err := m.check(); (err == nil) != allowed {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if m := findMount([]byte(mountinfo), func(m *mount) bool { return m.device == "0:42" }); m == nil || m.kind != "fuse.glusterfs" {
		t.Errorf("by its device: %+v", m)
	}
	if id := mountID([]byte("pos:\t0\nflags:\t012100000\nmnt_id:\t41\nino:\t1\n")); id != "41" {
		t.Errorf("the descriptor's mount is %q", id)
	}
}
