package fs

// A node number is the VM's serial, or an image's or a session's, the number of the row and a parameter (a
// port), so that looking one up is arithmetic. Serials are never
// reused, so that no number ever means another file: no generations.
const (
	rowShift    = 16
	serialShift = 24
)

// Bits of what stands in a VM's serial's place: VMs' own count from 1 and have none of them.
const (
	imageBit   = 1 << 38 // an image's number
	sessionBit = 1 << 37 // a session's serial, which is never used again either
)

// rootID is FUSE_ROOT_ID of the protocol: row 0, parameter 1.
const rootID = 1

func nodeID(serial uint64, row uint8, param uint16) uint64 {
	return serial<<serialShift | uint64(row)<<rowShift | uint64(param)
}

func splitID(id uint64) (serial uint64, row uint8, param uint16) {
	return id >> serialShift, uint8(id >> rowShift), uint16(id)
}

// plainID is the number of the file that a node stands for: its inode number for stat(2).
func plainID(id uint64) uint64 {
	if serial, row, _ := splitID(id); int(row) < len(rows) && rows[row].writable() {
		return nodeID(serial, row, 0)
	}
	return id
}
