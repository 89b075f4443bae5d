# Puts the age identity of this TPM at /seed/tpm/age-identity: the host's word, or what the TPM remembers, or a new one.
identity=/seed/tpm/age-identity
# In the range that the specification leaves to owners.
index=0x01800a9e

mkdir -p "${identity%/*}"
umask 077
if [ -s "${CREDENTIALS_DIRECTORY-}/seed.age-identity" ]; then
  cp "$CREDENTIALS_DIRECTORY/seed.age-identity" "$identity.new"
elif known=$(tpm2_nvreadpublic "$index" 2>/dev/null) && [[ $known == *written* ]]; then
  # If it cannot be read, this fails: a new key in its place would make every secret unreadable.
  tpm2_nvread -C o "$index" -o "$identity.new"
else
  # Without its comments: there is room for two thousand bytes.
  age-plugin-tpm --generate | grep '^AGE-PLUGIN-TPM-' >"$identity.new"
  # One that was never written to: the machine was stopped between the two.
  if [[ $known ]]; then tpm2_nvundefine -C o "$index"; fi
  tpm2_nvdefine -C o "$index" -s "$(wc -c <"$identity.new")" -a 'ownerread|ownerwrite' >/dev/null
  tpm2_nvwrite -C o "$index" -i "$identity.new"
fi
chmod 0600 "$identity.new"
mv "$identity.new" "$identity"
echo "age recipient of this instance: $(age-plugin-tpm -y "$identity")"
