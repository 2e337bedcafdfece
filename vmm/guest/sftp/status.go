package sftp

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"syscall"
)

// Codes of a status (section 7).
const (
	statusOK          = 0
	statusEOF         = 1
	statusNoFile      = 2
	statusPermission  = 3
	statusFailure     = 4
	statusUnsupported = 8
)

// errnos are the failures that a server may report; the client reads others as EIO. ENOTCONN,
// ESTALE and EINTR are not among them: they would speak of the host's mount or of the caller.
var errnos = []syscall.Errno{
	syscall.ENOENT, syscall.EACCES, syscall.EPERM, syscall.EEXIST, syscall.ENOTEMPTY,
	syscall.ENOTDIR, syscall.EISDIR, syscall.EINVAL, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS,
	syscall.EBUSY, syscall.EXDEV, syscall.ENAMETOOLONG, syscall.ELOOP, syscall.EMLINK,
	syscall.EFBIG, syscall.ETXTBSY, syscall.ENXIO, syscall.ENODEV, syscall.EAGAIN, syscall.EBADF,
	syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.EOPNOTSUPP, syscall.EOVERFLOW,
	syscall.ENODATA, syscall.ESRCH, syscall.ESPIPE, syscall.ENOLCK, syscall.EIO,
}

// appendStatus appends the status of err. Its text, which ends in that of its errno, holds more
// than the code.
func appendStatus(b []byte, err error) []byte {
	code, text := uint32(statusFailure), ""
	switch {
	case err == nil:
		code = statusOK
	case err == io.EOF:
		code = statusEOF
	case errors.Is(err, syscall.ENOENT):
		code = statusNoFile
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		code = statusPermission
	case errors.Is(err, syscall.EOPNOTSUPP):
		code = statusUnsupported
	}
	if err != nil {
		text = err.Error()
	}
	const language = ""
	return appendString(appendString(binary.BigEndian.AppendUint32(b, code), text), language)
}

// statusError undoes appendStatus: it returns nil, io.EOF or one of errnos.
func statusError(d *decoder) error {
	code, text := d.u32(), d.text()
	switch code {
	case statusOK:
		return nil
	case statusEOF:
		return io.EOF
	}
	for _, e := range errnos {
		if strings.HasSuffix(text, e.Error()) {
			return e
		}
	}
	switch code {
	case statusNoFile:
		return syscall.ENOENT
	case statusPermission:
		return syscall.EACCES
	case statusUnsupported:
		return syscall.EOPNOTSUPP
	}
	return syscall.EIO
}
