package fs

// A node number is the VM's serial, or an image's number with imageBit, the number of the row and a parameter (a
// port), so that looking one up is arithmetic. Serials are never
// reused, so that no number ever means another file: no generations.
const (
	rowShift    = 16
	serialShift = 24
)

// imageBit tells the numbers of images from the serials of VMs, which count from 1.
const imageBit = 1 << 39

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
