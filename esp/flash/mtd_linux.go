//go:build linux && !baremetal

package flash

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"
)

// MTD is NOR flash behind a character device of Linux's MTD subsystem
// (include/uapi/mtd/mtd-abi.h). [OpenMTD] opens one.
type MTD struct {
	f    *os.File
	size int64
}

var _ NOR = (*MTD)(nil)

// The ioctls of MTD, as most architectures number them: direction << 30,
// size << 16, 'M' << 8, number.
const (
	memGetInfo = 2<<30 | 32<<16 | 'M'<<8 | 1
	memErase   = 1<<30 | 8<<16 | 'M'<<8 | 2
)

// mtdInfo is struct mtd_info_user.
type mtdInfo struct {
	Type      uint8
	Flags     uint32
	Size      uint32
	EraseSize uint32
	WriteSize uint32
	OOBSize   uint32
	_         uint64
}

const mtdNORFlash, mtdRAM = 3, 1

// OpenMTD opens a device such as /dev/mtd0 for reading and writing. It has to be
// NOR flash that erases sectors of [SectorSize], which is how Linux drives serial
// NOR flash with CONFIG_MTD_SPI_NOR_USE_4K_SECTORS, or mtdram, its model in
// memory. Close it after use.
func OpenMTD(name string) (*MTD, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return nil, fmt.Errorf("flash: %w", err)
	}
	m := &MTD{f: f}
	var info mtdInfo
	if err := m.ioctl(memGetInfo, unsafe.Pointer(&info)); err != nil {
		f.Close()
		return nil, fmt.Errorf("flash: %s is no MTD character device: %w", name, err)
	}
	if info.Type != mtdNORFlash && info.Type != mtdRAM || info.EraseSize != SectorSize || info.WriteSize != 1 {
		f.Close()
		return nil, fmt.Errorf("flash: %s is MTD type %d that erases 0x%x and writes %d bytes at once, need NOR flash (3) with 0x%x and 1: %w",
			name, info.Type, info.EraseSize, info.WriteSize, SectorSize, errors.ErrUnsupported)
	}
	m.size = int64(info.Size)
	return m, nil
}

// Close closes the device.
func (m *MTD) Close() error { return m.f.Close() }

// Size implements [NOR].
func (m *MTD) Size() int64 { return m.size }

// ReadAt implements io.ReaderAt.
func (m *MTD) ReadAt(b []byte, off int64) (int, error) { return m.f.ReadAt(b, off) }

// Program implements [NOR].
func (m *MTD) Program(off int64, data []byte) error {
	if err := checkProgram(m.size, off, len(data)); err != nil {
		return err
	}
	if _, err := m.f.WriteAt(data, off); err != nil {
		return fmt.Errorf("flash: %w", err)
	}
	return nil
}

// EraseSector implements [NOR].
func (m *MTD) EraseSector(off int64) error {
	if err := checkErase(m.size, off); err != nil {
		return err
	}
	where := struct{ start, length uint32 }{uint32(off), SectorSize}
	if err := m.ioctl(memErase, unsafe.Pointer(&where)); err != nil {
		return fmt.Errorf("flash: erase at 0x%x of %s: %w", off, m.f.Name(), err)
	}
	return nil
}

func (m *MTD) ioctl(request uint32, arg unsafe.Pointer) error {
	conn, err := m.f.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, uintptr(ioctlNumber(request, runtime.GOARCH)), uintptr(arg))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// ioctlNumber translates a number for MIPS, PowerPC and SPARC, whose direction has
// three bits: 2 reads, 4 writes (arch/mips/include/uapi/asm/ioctl.h).
func ioctlNumber(request uint32, arch string) uint32 {
	if !strings.HasPrefix(arch, "mips") && !strings.HasPrefix(arch, "ppc") && !strings.HasPrefix(arch, "sparc") {
		return request
	}
	direction := uint32(2)
	if request>>30 == 1 {
		direction = 4
	}
	return direction<<29 | request&(1<<29-1)
}
