package quarklinktest

// For the tests of this package.
var (
	ByteRange          = byteRange
	ParseFirmwareField = parseFirmwareField
)
