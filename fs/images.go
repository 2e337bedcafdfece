package fs

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"banger/internal/value"
	"banger/vmm"
)

func imagesList(r *request) []entry {
	var entries []entry
	for _, i := range r.server.o.Images.Infos() {
		entries = append(entries, entry{name: i.Name, serial: imageBit | i.Number, row: imageRow.row})
	}
	return entries
}

func imagesFind(r *request, name string) (entry, bool) {
	for _, i := range r.server.o.Images.Infos() {
		if i.Name == name {
			return entry{name: name, serial: imageBit | i.Number, row: imageRow.row}, true
		}
	}
	return entry{}, false
}

func imageFiles() []file {
	image := func(name, doc string, get func(r *request, i *vmm.ImageInfo) string) file {
		return file{name: name, mode: 0o444, doc: doc, show: func(r *request) ([]byte, error) {
			i, ok := r.server.o.Images.Info(r.image)
			if !ok {
				return nil, vmm.ErrNotFound
			}
			return line(get(r, &i))
		}}
	}
	// What only a ready image has is empty until then.
	ready := func(name, doc string, get func(i *vmm.ImageInfo) string) file {
		return image(name, doc, func(_ *request, i *vmm.ImageInfo) string {
			if i.Status != vmm.ImageReady {
				return ""
			}
			return get(i)
		})
	}
	source := image("source", "what it is built from; writing builds it", func(_ *request, i *vmm.ImageInfo) string { return sentence(i.Source) })
	source.mode, source.store, source.paths = 0o664, sourceStore, true
	status := image("status", "empty, building PERCENT, ready or failed REASON", func(_ *request, i *vmm.ImageInfo) string { return imageStatus(i) })
	status.watch = true
	return []file{
		source,
		status,
		image("error", "the last refusal of a write in one sentence", func(_ *request, i *vmm.ImageInfo) string { return sentence(i.Error) }),
		ready("size", "bytes", func(i *vmm.ImageInfo) string { return strconv.FormatInt(i.Size, 10) }),
		ready("digest", "of its content", func(i *vmm.ImageInfo) string { return i.Digest }),
		ready("kernel", "the kernel's file", func(i *vmm.ImageInfo) string { return i.Kernel }),
		ready("cmdline", "the kernel's command line", func(i *vmm.ImageInfo) string { return i.Cmdline }),
		ready("memory", "least bytes of memory", func(i *vmm.ImageInfo) string { return strconv.FormatInt(i.Memory, 10) }),
		image("created", "Unix seconds", func(_ *request, i *vmm.ImageInfo) string { return value.FormatTime(i.Created) }),
		image("used_by", "VM names, one per line", func(r *request, i *vmm.ImageInfo) string {
			return strings.Join(r.server.o.Manager.ImageUsers(i.Name), "\n")
		}),
		{name: "wait", mode: 0o555, kind: hidden, doc: "what blocks", files: []file{
			{name: "ready", mode: 0o444, doc: "blocks until it is so", open: waitImage},
		}},
	}
}

func imageStatus(i *vmm.ImageInfo) string {
	switch i.Status {
	case vmm.ImageBuilding:
		return fmt.Sprintf("%s %d", i.Status, i.Percent)
	case vmm.ImageFailed:
		return string(i.Status) + " " + sentence(i.Reason)
	}
	return string(i.Status)
}

func imagesMake(r *request, name string, owner vmm.Owner) error {
	var i vmm.ImageInfo
	err := r.detached(func(ctx context.Context) (err error) {
		i, err = r.server.o.Images.Create(ctx, name, owner)
		return err
	})
	if err == nil {
		r.file, r.image, r.node = imageRow, i.Number, nodeID(imageBit|i.Number, imageRow.row, 0)
	}
	return err
}

func imagesRemove(r *request, name string) error {
	may := r.mayDelete()
	return r.detached(func(ctx context.Context) error { return r.server.o.Images.Remove(ctx, name, may) })
}

func sourceStore(r *request, text string) error {
	by, number := r.opener, r.image
	by.use() // by what goes on after the write
	return r.detached(func(ctx context.Context) error {
		defer by.release()
		return r.server.o.Images.Build(ctx, number, text, *by.Caller)
	})
}

func waitImage(r *request, _ bool) (handle, error) {
	images, number := r.server.o.Images, r.image
	return &waiter{wait: timing(func(ctx context.Context) (time.Duration, error) { return images.Wait(ctx, number) })}, nil
}

func blobsShow(r *request) ([]byte, error) {
	c, err := r.server.o.Images.Blobs()
	if err != nil {
		return nil, err
	}
	return flat([]pair{{key: "files", value: c.Files}, {key: "bytes", value: c.Bytes}, {key: "unused_bytes", value: c.UnusedBytes}}), nil
}

func blobsStore(r *request, text string) error {
	if text != "gc" {
		return fmt.Errorf("%.64q is not a command; write gc: %w", text, vmm.ErrInvalid)
	}
	return r.detached(r.server.o.Images.Collect)
}
